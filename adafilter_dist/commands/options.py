"""Options that several verbs have."""

from __future__ import annotations

import argparse


def add_gates(parser: argparse.ArgumentParser) -> None:
    """The option that shows all gates where a line about them is the default."""
    parser.add_argument(
        "--gates", action="store_true", help="show the gates of every layer at the end"
    )
