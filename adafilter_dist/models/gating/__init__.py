"""The AdaFilter network: pairs of filters, their gate, BatchNorms, conversion; SpotTune's blocks.

Fast kernels are in `models.ops`, networks that only predict in `models.inference`.
"""
