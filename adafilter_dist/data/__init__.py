"""Data sets, prepared data, and batches of them.

Opening one picture file is in `pictures`; augmentation of batches is in `data.loading`.
"""
