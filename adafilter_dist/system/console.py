"""The console that a command prints to."""

from __future__ import annotations

from collections.abc import Callable

import rich.console

from adafilter_dist.system.closed_output import drop_unread


def print_plain(console: rich.console.Console, *lines: str) -> None:
    """Print lines as they are, to be read or copied: no markup, no colours, no wrapping."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


class Console(rich.console.Console):
    """rich's console; a reader that is gone is a BrokenPipeError, or what ``when_unread`` does."""

    _unread: Callable[[], None] | None = None

    def when_unread(self, act: Callable[[], None]) -> None:
        """Call ``act`` once nobody reads the output; nothing is printed from then on."""
        self._unread = act

    def on_broken_pipe(self) -> None:
        """Called by rich instead of the BrokenPipeError that it met."""
        self.quiet = True
        if self._unread is None:
            raise BrokenPipeError  # `exit_code` drops the output and knows by that what happened
        drop_unread()
        self._unread()
