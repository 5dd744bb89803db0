"""Fine-tune a network on a folder of photos and label pictures, evaluate it, and predict.

    python examples/fine_tune_folder.py photos/ labels/ runs/mine --classes background,cat,dog
    python examples/fine_tune_folder.py photos/ labels/ runs/mine --classes background,cat,dog \\
        --model deeplabv2_resnet101 --weights deeplabv1_resnet101-coco.pth --iterations 20000

A label picture has its photo's name, ends in .png, and holds class numbers. A fifth of the photos is kept to
evaluate on. The same by the command, with everything that can be set: configs/folder.yaml.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deeplab_fast import data, evaluation, models, nn, training
from deeplab_fast.config import parse_config


def split(photos: Path, folder: Path) -> None:
    """Lists of names: every fifth photo is for evaluation."""
    names = sorted(path.stem for path in photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "val.txt").write_text("\n".join(names[::5]))
    (folder / "train.txt").write_text("\n".join(name for number, name in enumerate(names) if number % 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("photos", "labels", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--classes", required=True, help="names, from number 0 on, separated by commas")
    parser.add_argument("--model", default="deeplabv2_small")
    parser.add_argument("--weights", help="to start from; without, a large network needs far more data")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--crop", type=int, default=321, help="pixels, one more than a multiple of 8")
    options = parser.parse_args()

    split(options.photos, options.out / "lists")
    lists = {name: str(options.out / "lists" / f"{name}.txt") for name in ("train", "val")}
    entries = {
        "output": str(options.out / "training"),
        "data": {
            "kind": "folder", "images": str(options.photos), "labels": str(options.labels),
            "classes": options.classes.split(","), **lists,
        },
        "model": {"name": options.model, "options": {"msc": False}, "weights": options.weights, "classifier": "fresh"},
        "training": {
            "iterations": options.iterations, "batch_size": 4, "accumulation": 1, "crop": options.crop,
            "lr": 0.00025 if options.weights else 0.02, "classifier_factor": 10 if options.weights else 1,
            "workers": 2,
            "evaluate_every": 0, "checkpoint_every": 500,
        },
    }  # fmt: skip
    config = parse_config(entries, "this script")
    done = training.train(config)

    model = models.create(options.model, len(config.data.classes), msc=False)
    models.load_weights(model, done.last)
    predictor = evaluation.Predictor(model, len(config.data.classes), crf=nn.DenseCRF.preset("deeplab"))
    unseen = data.Folder(options.photos, options.labels, config.data.classes, list=lists["val"])
    result = evaluation.evaluate(predictor, unseen)
    before, after = result.matrix.scores(), result.matrix_crf.scores()
    print(f"mean IoU {100 * before.mean_iou:.1f} %, with the CRF {100 * after.mean_iou:.1f} %")

    photos = [entry.image for entry in unseen.entries]
    evaluation.predict(predictor, photos, options.out / "predicted", overlay="jpg")
    print(f"{len(photos)} photos with their labels in {options.out / 'predicted'}")


if __name__ == "__main__":
    main()
