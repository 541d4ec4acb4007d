"""The sections of a recipe: one typed class for each, with every key's default and meaning.

Rules between two sections are in `schema`, what reads files and words is beside it in `recipe`.
"""
