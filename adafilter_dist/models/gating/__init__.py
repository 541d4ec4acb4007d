"""The AdaFilter network: pairs of filters, their gate, BatchNorms, conversion.

Fast kernels are in `models.ops`, networks that only predict in `models.inference`.
"""
