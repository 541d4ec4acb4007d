"""From a data set to prepared data: reading pictures, scaling, writing.

Which pictures there are is in `data.sources`.
"""
