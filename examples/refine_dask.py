"""A data set through the dense CRF in Dask: each task refines a part of it.

    pip install dask                                                  # and distributed, for several machines
    python examples/refine_dask.py IMAGES SCORES OUT --shards 16
    python examples/refine_dask.py IMAGES SCORES OUT --shards 256 --scheduler tcp://HOST:8786

The folders must be the same on all machines. Started again, it goes on with what is not there.
"""

from __future__ import annotations

import argparse
from typing import Any

import dask.bag

from deeplab_fast import crf


def refine_part(number: int, shards: int, images: str, scores: str, out: str) -> dict[str, Any]:
    """Refine the images that belong to a part, 1 to `shards`, in a process of its own."""
    result = crf.refine_dataset(images, scores, out, shard=(number, shards), jobs=1)
    return {"images": result.images, "skipped": result.skipped, "failed": result.failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("images", "scores", "out"):
        parser.add_argument(name)
    parser.add_argument("--shards", type=int, default=16, help="parts, a task each")
    parser.add_argument("--scheduler", help="address of a scheduler of dask.distributed (default: processes here)")
    options = parser.parse_args()
    if options.scheduler:
        from dask.distributed import Client

        Client(options.scheduler)  # becomes the default
    numbers = dask.bag.from_sequence(range(1, options.shards + 1), npartitions=options.shards)
    tasks = numbers.map(refine_part, options.shards, options.images, options.scores, options.out)
    parts = tasks.compute()
    print(f"{sum(part['images'] for part in parts)} refined, {sum(part['skipped'] for part in parts)} were there")
    for part in parts:
        for name, reason in part["failed"].items():
            print(f"failed: {name}: {reason}")


if __name__ == "__main__":
    main()
