"""A tiny training by the command, for the tests of the segmentation system's commands."""

from __future__ import annotations

from typer.testing import CliRunner

from deeplab_fast.commands import app

CONFIG = """
output: {folder}/run
device: cpu
data:
  kind: shapes
  root: {folder}/set
  generate: {{train: 8, val: 4, size: [64, 48]}}
model: {{name: deeplabv2_small, options: {{msc: false}}}}
training: {{iterations: 4, batch_size: 2, accumulation: 1, lr: 0.001, crop: 65, workers: 0, evaluate_every: 4,
  checkpoint_every: 2, log_every: 1}}
crf: {{bi_xy_std: 20, bi_rgb_std: 13}}
"""


def call(*words):
    """Run the command in-process."""
    return CliRunner().invoke(app.app, [str(word) for word in words])


def train_in(folder):
    """Write a configuration and a made-up set, and train; the result of the command."""
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
    return call("train", "-c", folder / "config.yaml", "--quiet")
