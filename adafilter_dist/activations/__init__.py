"""Outputs of the frozen first layers, kept on disk and read instead of computed (train.cache).

What the layers are is in `models`, how pictures are read in `data`.
"""
