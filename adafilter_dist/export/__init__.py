"""A trained model for elsewhere: as ONNX, as a program of torch.export, with its model card.

The folder of weights that training writes, and how exports are read, are in `methods`.
"""
