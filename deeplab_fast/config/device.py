"""Where to compute, and in which precision."""

from __future__ import annotations

import os

import torch

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
        raise ValueError(f"device: is {name!r}, should be auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: is {name!r}, should be auto, cpu or cuda")
    if device == torch.device("cuda"):  # each process of torchrun has one of its own
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: is {name!r}, but torch finds {torch.cuda.device_count() or 'no'} GPU")
    return device
