"""One photo through the dense CRF, without torch: rough scores in, labels and probabilities out.

    python examples/refine_photo.py photo.jpg scores.npy labels.png --preset irn

The scores are logits (K, h, w), of the photo's size or smaller.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image

from deeplab_fast import crf, pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("photo", "scores", "out"):
        parser.add_argument(name)
    parser.add_argument("--preset", default="deeplab", choices=[*crf.PRESETS])
    options = parser.parse_args()

    image = np.asarray(Image.open(options.photo).convert("RGB"))
    logits = crf.resize_scores(np.load(options.scores), image.shape[:2])
    prob = crf.probabilities_from_scores(logits, "logits")
    Q = crf.refine(image, prob, options.preset)

    pictures.save_labels(options.out, Q.argmax(axis=0))
    changed = (Q.argmax(axis=0) != prob.argmax(axis=0)).mean()
    print(f"{options.out}: {100 * changed:.1f} % of the pixels have another label")


if __name__ == "__main__":
    main()
