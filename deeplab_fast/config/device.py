"""Where to compute, and in which precision."""

from __future__ import annotations

import os

import torch

from deeplab_fast.errors import ArgumentError

# What `precision` of a configuration stands for; None: no autocast.
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of(name: str) -> torch.device:
    """A device by name; "auto" is "cuda" where there is a GPU, else the CPU; "cuda" is the GPU of this process.

    Raises:
        ValueError: if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError("device", name, "auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ArgumentError("device", name, "auto, cpu or cuda")
    if device == torch.device("cuda"):  # each process of torchrun has one of its own
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ArgumentError("device", name, f"one of the {torch.cuda.device_count()} GPUs that torch finds, or cpu")
    return device
