"""What the scripts beside this folder share: settings, clocks, networks, tables, floors.

What one runs is beside the folder.
"""
