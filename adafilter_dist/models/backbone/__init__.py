"""Pre-trained networks: by name, their weights, head and preprocessing.

Turning one into an AdaFilter network is in `models.gating`.
"""
