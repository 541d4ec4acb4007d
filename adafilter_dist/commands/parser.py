"""Options of the verbs: mistakes in one line that names the right word, examples in the help."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from adafilter_dist.errors import UserError, closest, shown

_WIDTH = 98


class Parser(argparse.ArgumentParser):
    """argparse's, which raises UserError instead of printing its usage.

    ``examples`` are whole commands, shown at the end of the help; ``more`` stands behind them.
    ``own_words`` are words beside a recipe's keys that TAB offers: ``methods=``, with its values.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        examples: Sequence[str],
        more: str = "",
        own_words: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        # Python's own fill would run the examples into one paragraph.
        lines = description if "\n" in description else textwrap.fill(description, _WIDTH)
        shown_examples = "".join(f"\n  {example}" for example in examples)
        title = "example:" if len(examples) == 1 else "examples:"
        super().__init__(
            prog=prog,
            description=lines,
            epilog=f"{title}{shown_examples}" + (f"\n\n{more}" if more else ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )
        self.examples = tuple(examples)
        self.own_words = dict(own_words or {})

    def add_gates(self) -> None:
        """Add the option that shows all gates where a line about them is the default."""
        self.add_argument(
            "--gates", action="store_true", help="show the gates of every layer at the end"
        )

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{shown(message)}; {self.prog} --help says what there is")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's, after a look for options that there are not; or what TAB offers."""
        self._look_at(args or [])
        return super().parse_args(args, namespace)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's, after a look for options that there are not; or what TAB offers."""
        self._look_at(args or [])
        return super().parse_intermixed_args(args, namespace)

    def _look_at(self, words: Sequence[str]) -> None:
        if "_ARGCOMPLETE" in os.environ:
            from adafilter_dist.commands.completer import complete

            complete(self)
        self._require_options(words)

    def _require_options(self, words: Sequence[str]) -> None:
        """UserError with a line for each unknown option: ``--epochs 3`` is ``train.epochs=3``."""
        known = self._option_string_actions
        takes_settings = any("=" in str(action.metavar) for action in self._actions)
        mistakes, rest = [], list(words)
        while rest and (word := rest.pop(0)) != "--":
            name, _, value = word.partition("=")
            if not word.startswith("-") or word == "-" or name in known or word[:2] in known:
                # The value of an option may begin with a -, as a negative number does.
                action = known.get(word)
                if action is not None and action.nargs is None and rest:
                    rest.pop(0)
                continue
            closest_option = closest(name, known, cutoff=0.75) if name.startswith("--") else ""
            if not takes_settings or (closest_option and not _means_recipe(name)):
                hint = f" (did you mean {closest_option}?)" if closest_option else ""
                mistakes.append(f"{shown(word)}: no such option{hint}; {self.prog} --help")
                continue
            # Imported here: `doctor` runs where what recipes need is missing.
            from adafilter_dist.recipe.hints import option_meant

            if not value and rest and "=" not in rest[0] and not rest[0].startswith("-"):
                value = rest.pop(0)
            mistakes.append(option_meant(name, value))
        if mistakes:
            raise UserError("\n".join(mistakes))


def _means_recipe(option: str) -> bool:
    from adafilter_dist.recipe.keys import means_recipe

    return means_recipe(option)
