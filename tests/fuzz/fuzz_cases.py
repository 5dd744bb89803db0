"""What tests/fuzz/fuzz.py draws: arguments of every op at random, and the checks of results against float64.

An op has two functions: one draws a case, a dict that prints well; the other makes tensors of it, calls the op, forward
and backward, and raises AssertionError where the result is not accurate (the policy of conv_samples.py and samples.py).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fuzz_convolutions import (
    check_argmax,
    check_aspp,
    check_atrous,
    check_softmax,
    draw_aspp,
    draw_atrous,
    draw_upsample,
)
from fuzz_crf import check_crf, check_filter, check_pairwise, draw_crf, draw_filter, draw_pairwise
from fuzz_tensors import Case

OPS: dict[str, tuple[Callable[[Random], Case], Callable[[Case], None]]] = {
    "atrous_conv2d": (draw_atrous, check_atrous),
    "aspp_sum": (draw_aspp, check_aspp),
    "upsample_argmax": (draw_upsample, check_argmax),
    "upsample_softmax": (draw_upsample, check_softmax),
    "permutohedral_filter": (draw_filter, check_filter),
    "dense_crf": (draw_crf, check_crf),
    "pairwise_energy": (draw_pairwise, check_pairwise),
}
