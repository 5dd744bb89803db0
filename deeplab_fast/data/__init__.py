"""Datasets for semantic segmentation, and what brings their samples into a network."""

from __future__ import annotations

from deeplab_fast.data.augmentation import Blur, ColorJitter
from deeplab_fast.data.cocostuff import COCOSTUFF_CLASSES, COCOStuff10k, COCOStuff164k
from deeplab_fast.data.datasets import VOC12, VOC_CLASSES, VOCLayout
from deeplab_fast.data.folders import Folder
from deeplab_fast.data.problems import Problem
from deeplab_fast.data.resizing import resize_labels
from deeplab_fast.data.sample import Sample, SegmentationDataset
from deeplab_fast.data.sampling import Shard, ShuffledSampler, shard
from deeplab_fast.data.shapes import Shapes, write_shapes
from deeplab_fast.data.training_set import Batch, Crop, TrainingSet, collate, collate_samples
from deeplab_fast.data.transforms import MEAN_BGR, TrainingTransform, to_network

__all__ = [
    "COCOSTUFF_CLASSES",
    "MEAN_BGR",
    "VOC12",
    "VOC_CLASSES",
    "Batch",
    "Blur",
    "COCOStuff10k",
    "COCOStuff164k",
    "ColorJitter",
    "Crop",
    "Folder",
    "Problem",
    "Sample",
    "SegmentationDataset",
    "Shapes",
    "Shard",
    "ShuffledSampler",
    "TrainingSet",
    "TrainingTransform",
    "VOCLayout",
    "collate",
    "collate_samples",
    "resize_labels",
    "shard",
    "to_network",
    "write_shapes",
]
