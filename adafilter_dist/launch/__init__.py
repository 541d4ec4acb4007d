"""Runs as jobs. Nothing is imported here: `adafilter status` uses queue.py and must stay quick."""
