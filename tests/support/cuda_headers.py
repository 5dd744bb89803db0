"""Where CUDA's headers are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def cuda_include() -> Path | None:
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME", "/usr/local/cuda"), nvcc and str(Path(nvcc).resolve().parents[1])]
    return next((Path(home, "include") for home in homes if home and Path(home, "include/cuda_fp16.h").exists()), None)
