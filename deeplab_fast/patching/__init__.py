"""Fused ops in models that others wrote.

`tracing` tells what a module's forward does, `finding` what of it an op can do, `replacing` writes the forward with ops
and puts it in place, `probing` compares the two before, and `report` tells of it. `patcher` goes through a
model; `accelerating` does more for inference.
"""

from deeplab_fast.patching.accelerating import accelerate
from deeplab_fast.patching.patcher import patch, unpatch
from deeplab_fast.patching.report import Entry, Report

__all__ = ["Entry", "Report", "accelerate", "patch", "unpatch"]
