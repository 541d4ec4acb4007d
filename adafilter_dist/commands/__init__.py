"""The verbs of the command, one file each: they parse words and call one function.

What they do is in the folders below.
"""
