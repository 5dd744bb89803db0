"""The commands of the segmentation system, a module each; `deeplab_fast.cli` puts them together."""
