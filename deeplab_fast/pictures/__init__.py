"""Pictures in and out: photos, label maps in the VOC palette, overlays, panels. Files appear whole or not.

Everything is numpy and Pillow. Photos are uint8 (H, W, 3) RGB, label maps integer (H, W).
"""

from __future__ import annotations

from deeplab_fast.pictures.drawing import (
    IGNORED,
    boundaries,
    colour_labels,
    labels_writer,
    overlay,
    panel,
    picture_format,
    picture_size,
    picture_writer,
    read_grey,
    read_image,
    read_labels,
    save_image,
    save_labels,
    voc_palette,
)

__all__ = [
    "IGNORED",
    "boundaries",
    "colour_labels",
    "labels_writer",
    "overlay",
    "panel",
    "picture_format",
    "picture_size",
    "picture_writer",
    "read_grey",
    "read_image",
    "read_labels",
    "save_image",
    "save_labels",
    "voc_palette",
]
