"""Kernels and operators of gated layers in training, for CPU (C++) and GPU (Triton).

Those of prediction are in `models.inference`.
"""
