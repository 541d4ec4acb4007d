"""Checkpoints: save whole and beside the training, verify, find the newest good one, keep k.

``image`` and ``saver`` copy a state into shared memory, ``writer`` and ``publish`` (another
process, without torch) bring it to disk, ``store`` reads it back; ``interval`` says how often.
"""
