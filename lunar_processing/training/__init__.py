"""The training room: one loop, losses, data, augmentations, and a recipe for each task.

Needs torch, numpy and safetensors alone, so that a bare machine with a GPU can train. Files with a place on the
Moon are read in `tools/train.py` and come here as arrays.
"""
