"""From prepared data to batches on a device: order, loaders, augmentation.

Draws depend on seed, epoch and picture alone, never on how many ranks there are.
"""
