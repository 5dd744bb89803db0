"""The commands of the segmentation system, a module each; `deeplab_fast.commands.app` puts them together."""
