"""Whole data sets through the dense CRF: resumable, in several processes, on several machines. Without torch."""

from __future__ import annotations

from deeplab_fast.crf.dataset.pairs import Pair, find_pairs, is_several
from deeplab_fast.crf.dataset.record import failed_path
from deeplab_fast.crf.dataset.running import DatasetResult, refine_dataset
from deeplab_fast.crf.dataset.shards import Shard, from_environment

__all__ = [
    "DatasetResult",
    "Pair",
    "Shard",
    "failed_path",
    "find_pairs",
    "from_environment",
    "is_several",
    "refine_dataset",
]
