"""A data set through pydensecrf in a pool of processes, as people write it: the peer of `bench.dataset`.

python bench/pydensecrf_pool.py IMAGES SCORES OUT PROCESSES
"""

from __future__ import annotations

import functools
import sys
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import pydensecrf.densecrf as dcrf
from PIL import Image
from pydensecrf.utils import unary_from_softmax


def refine(scores: Path, out: Path, path: Path) -> None:
    """One image: preset `deeplab`, from logits at the network's size to a palette picture."""
    image = np.array(Image.open(path).convert("RGB"))
    height, width = image.shape[:2]
    with np.load(scores / f"{path.stem}.npz") as file:
        logits = file["logits"].astype(np.float32)
    # Pillow's bilinear filter is the fastest way without torch.
    enlarged = (Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR) for one in logits)
    large = np.stack([np.asarray(one) for one in enlarged])
    large -= large.max(axis=0)
    np.exp(large, out=large)
    large /= large.sum(axis=0)
    crf = dcrf.DenseCRF2D(width, height, len(large))
    crf.setUnaryEnergy(unary_from_softmax(large))
    crf.addPairwiseGaussian(sxy=1, compat=3)
    crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    labels = np.argmax(crf.inference(10), axis=0).reshape(height, width)
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette([value for label in range(256) for value in (label, 255 - label, (37 * label) % 256)])
    picture.save(out / f"{path.stem}.png")


def main(images: str, scores: str, out: str, processes: str) -> None:
    Path(out).mkdir(exist_ok=True)
    with Pool(int(processes)) as pool:
        task = functools.partial(refine, Path(scores), Path(out))
        for _ in pool.imap_unordered(task, sorted(Path(images).iterdir())):
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
