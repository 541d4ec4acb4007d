"""A run on disk: its folder, who owns it, the recipe it keeps. Imports no torch.

Checkpoints are in `checkpoint`, what writes them while training in `training`.
"""
