"""A trained model on pictures that nobody labelled: what they are, and what its gates chose.

The files that words name, batches of them through a model, tables of the answers. Pictures of
prepared data are measured in `evaluate`.
"""
