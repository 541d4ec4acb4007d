"""Prepared data: the files, their manifest, their splits, copies on a node.

Making them is in `data.prepare`, reading batches of them in `data.loading`.
"""
