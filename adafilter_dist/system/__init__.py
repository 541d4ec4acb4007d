"""Files, disks, processors, the console: what knows nothing of AdaFilter.

What a run keeps on disk is in `run`, errors with their wording are in `errors.py`.
"""
