"""Configurations: what a file may say (`schema`, `recipe`), and what is made of it (`build`, `weights`, `device`).

Importing this imports pydantic, not torch; the parts that make something do.
"""

from __future__ import annotations

from deeplab_fast.config.recipe import CRFLossConfig, LossConfig, OHEMConfig, TrainingConfig
from deeplab_fast.config.schema import (
    Config,
    CRFConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ShapesConfig,
    parse_config,
    read_config,
)

__all__ = [
    "CRFConfig",
    "CRFLossConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LossConfig",
    "ModelConfig",
    "OHEMConfig",
    "ShapesConfig",
    "TrainingConfig",
    "parse_config",
    "read_config",
]
