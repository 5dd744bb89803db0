"""Files for the tests of the command line, and how those run it."""

from __future__ import annotations

import os
import re

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from deeplab_fast import pictures
from deeplab_fast.commands import app

HEIGHT, WIDTH = 40, 56


def make_scene(path):
    """Fill a folder with a photo, scores in several forms and scribbled label pictures, all of one scene."""
    rng = np.random.default_rng(0)
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    truth[10:30, 15:40] = 1
    image = np.where(truth[..., None] == 1, [220, 180, 60], [20, 40, 90]) + rng.integers(-5, 6, (HEIGHT, WIDTH, 3))
    logits = rng.normal(0, 1, (3, HEIGHT, WIDTH)).astype(np.float32)
    logits[0] += 2 * (truth == 0)
    logits[1] += 2 * (truth == 1)
    scribbles = np.full((HEIGHT, WIDTH), 255, np.uint8)
    scribbles[5, 5:50] = 0
    scribbles[18:22, 20:35] = 1
    pictures.save_image(path / "photo.png", image.clip(0, 255).astype(np.uint8))
    np.save(path / "logits.npy", logits)
    np.save(path / "truth.npy", truth)
    np.savez(path / "logits.npz", logits=logits)
    np.savez_compressed(path / "several.npz", scores=logits, other=logits[:1])
    pictures.save_labels(path / "scribbles.png", scribbles)
    Image.fromarray(scribbles).save(path / "grey.png")
    return path


def run(folder, *arguments, **options):
    """Run the command in-process; names of files, which have a dot, are taken from ``folder``."""
    words = [str(folder / a) if re.fullmatch(r"[^-\d].*\.\w+", str(a)) else str(a) for a in arguments]
    return CliRunner().invoke(app.app, words, **options)


def files(folder):
    return sorted(os.listdir(folder))


def succeeds(result):
    assert result.exit_code == 0, result.output
    assert "Traceback" not in result.output
    return result


def fails(folder, code, message, *arguments):
    """The command exits with ``code``, says ``message`` in one line on stderr, and leaves no new file."""
    before = files(folder)
    result = run(folder, "crf", *arguments, "-o", "out.png")
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if not line.startswith("note:")]
    assert len(errors) == 1, result.stderr
    assert re.search(message, errors[0]), errors[0]
    assert errors[0].startswith("deeplab-fast crf: " + ("error: " if code == 1 else "wrong use: "))
    assert "Traceback" not in result.output
    assert files(folder) == before
