"""Comparing methods under equal budgets: the plan, its runs, statistics, tables and the figure.

How one run is trained, measured and submitted is in the folders further down.
"""
