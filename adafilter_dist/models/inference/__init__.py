"""Trained AdaFilter networks that only predict: chosen filters alone, folded BatchNorms.

Training is in `models.gating`.
"""
