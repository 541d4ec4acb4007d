"""Networks: pre-trained ones, AdaFilter's, and their kernels.

What is trained of them, and how, is in `methods`.
"""
