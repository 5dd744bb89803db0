"""A data set through the dense CRF in Ray Data: each task refines a part of it.

    pip install 'ray[data]'
    python examples/refine_ray.py IMAGES SCORES OUT --shards 16       # on the cluster that RAY_ADDRESS names, or here

The folders must be the same on all machines. Started again, it goes on with what is not there.
"""

from __future__ import annotations

import argparse
from typing import Any

import ray

from deeplab_fast import crf


def refine_part(row: dict[str, Any], shards: int, images: str, scores: str, out: str) -> dict[str, Any]:
    """Refine the images that belong to a part, row["id"] of 0 to `shards` - 1, in a process of its own."""
    result = crf.refine_dataset(images, scores, out, shard=(int(row["id"]) + 1, shards), jobs=1)
    failed = [f"{name}: {reason}" for name, reason in result.failed.items()]
    return {"images": result.images, "skipped": result.skipped, "failed": "\n".join(failed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("images", "scores", "out"):
        parser.add_argument(name)
    parser.add_argument("--shards", type=int, default=16, help="parts, a task each")
    options = parser.parse_args()
    parts = ray.data.range(options.shards, override_num_blocks=options.shards).map(
        refine_part, fn_args=(options.shards, options.images, options.scores, options.out)
    )
    rows = parts.take_all()
    print(f"{sum(row['images'] for row in rows)} refined, {sum(row['skipped'] for row in rows)} were there")
    for row in rows:
        if row["failed"]:
            print(f"failed: {row['failed']}")


if __name__ == "__main__":
    main()
