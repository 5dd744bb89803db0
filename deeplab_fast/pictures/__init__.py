"""Pictures in and out: photos, label maps in the VOC palette, overlays, panels. Files appear whole or not.

Everything is numpy and Pillow. Photos are uint8 (H, W, 3) RGB, label maps integer (H, W).
"""

from __future__ import annotations

from deeplab_fast.pictures.drawing import boundaries, colour_labels, overlay, panel, voc_palette
from deeplab_fast.pictures.label_values import IGNORED, LabelValues
from deeplab_fast.pictures.reading import (
    IMAGE_ENDINGS,
    picture_size,
    read_grey,
    read_image,
    read_label_colors,
    read_labels,
    read_palette,
)
from deeplab_fast.pictures.writing import labels_writer, picture_format, picture_writer, save_image, save_labels

__all__ = [
    "IGNORED",
    "IMAGE_ENDINGS",
    "LabelValues",
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
    "read_label_colors",
    "read_labels",
    "read_palette",
    "save_image",
    "save_labels",
    "voc_palette",
]
