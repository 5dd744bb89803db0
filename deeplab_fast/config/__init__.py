"""Configurations: what a file may say (`schema`), and what is made of it (`build`, `weights`, `device`).

Importing this imports pydantic, not torch; the parts that make something do.
"""

from __future__ import annotations

from deeplab_fast.config.schema import (
    Config,
    CRFConfig,
    CRFLossConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ShapesConfig,
    TrainingConfig,
    parse_config,
    read_config,
)

__all__ = [
    "CRFConfig",
    "CRFLossConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "ModelConfig",
    "ShapesConfig",
    "TrainingConfig",
    "parse_config",
    "read_config",
]
