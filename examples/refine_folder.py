"""A data set through the dense CRF, and whether it helped: mean IoU before and after.

    python examples/refine_folder.py images/ scores/ refined/ --labels truth/ --preset deeplab

Stopped or killed, it goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse

from deeplab_fast import crf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("images", "scores", "out"):
        parser.add_argument(name)
    parser.add_argument("--labels", help="folder of true labels")
    parser.add_argument("--preset", default="deeplab", choices=[*crf.PRESETS])
    options = parser.parse_args()

    result = crf.refine_dataset(
        options.images, options.scores, options.out, params=options.preset, labels=options.labels
    )
    print(f"{result.images} refined, {result.skipped} were there")
    for name, reason in result.failed.items():
        print(f"failed: {name}: {reason}")
    if result.before and result.after:
        print(f"mean IoU {100 * result.before.mean_iou:.1f} %, after the CRF {100 * result.after.mean_iou:.1f} %")


if __name__ == "__main__":
    main()
