"""``adafilter logs``: what a rank of a run printed, and prints."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from adafilter_dist.commands.parser import Parser
from adafilter_dist.errors import UserError
from adafilter_dist.slurm.queue import Queue
from adafilter_dist.status import RunStatus, is_run, read_runs
from adafilter_dist.status.logs import Follower, last_of, log_of

HELP = "what a rank of a run printed"
_LOOK_EVERY = 0.5
_STATUS_EVERY = 2.0
_ASK_EVERY = 10.0  # seconds between questions to SLURM
_SILENT_LOOKS = 30  # a minute
_OVER = ("finished", "stopped", "failed", "killed", "cancelled", "lost")


def run(words: list[str]) -> int:
    """Parse ``RUN [--rank N] [--follow] [--lines N | --all]`` and print."""
    parser = Parser(
        prog="adafilter logs",
        description=HELP + ".",
        examples=["adafilter logs runs/demo/1a2b3c4d --rank 1 --follow"],
    )
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="of this rank; default 0")
    parser.add_argument(
        "--follow", "-f", action="store_true", help="print what is added, until the run ends"
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--lines", "-n", type=int, default=50, metavar="N", help="default 50")
    amount.add_argument("--all", action="store_true", help="from the beginning")
    options = parser.parse_args(words)
    folder = Path(options.run).expanduser()
    if not is_run(folder):
        raise UserError(f"{folder}: no run; adafilter status ROOT lists the runs below a folder")
    if options.lines < 0:
        raise UserError(f"--lines {options.lines}: give 0 or more")
    path = log_of(folder, options.rank)
    lines = None if options.all else options.lines
    try:
        if options.follow:
            _follow(folder, path, lines, options.rank)
        else:
            _print(_last(folder, path, lines))
    except KeyboardInterrupt:
        pass
    return 0


def _last(folder: Path, path: Path, lines: int | None) -> bytes:
    try:
        content, _ = last_of(path, lines)
    except FileNotFoundError:
        stands = _stands(read_runs([folder])[0])
        raise UserError(f"{path} is not there; {stands}; --follow waits for it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return content if content.endswith(b"\n") or not content else content + b"\n"


def _follow(folder: Path, path: Path, lines: int | None, rank: int) -> None:
    """Print until the run has ended and nothing has been added for a while."""
    queue = Queue(every=_ASK_EVERY)
    position = 0
    try:
        content, position = last_of(path, lines)
        _print(content)
    except FileNotFoundError:
        _say(f"waiting for {path}; {_stands(read_runs([folder], queue)[0])}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    follower = Follower(path, position)
    read_at, over_for = 0.0, 0
    while True:
        news = False
        for block in follower.news():
            news = True
            _print(block)
        if news:
            over_for = 0
        if time.monotonic() - read_at >= _STATUS_EVERY:
            status = read_runs([folder], queue)[0]
            read_at = time.monotonic()
            over_for = over_for + 1 if _is_over(status) else 0
            # Its job may yet requeue itself.
            if over_for >= (_SILENT_LOOKS if status.slurm == "RUNNING" else 2):
                _say(_stands(status))
                return
        time.sleep(_LOOK_EVERY)


def _is_over(status: RunStatus) -> bool:
    """Whether nothing more will come, unless somebody starts it again."""
    ending = status.slurm in ("COMPLETING", "PENDING") and status.state != "finished"
    return status.state in _OVER and not ending


def _stands(status: RunStatus) -> str:
    return f"the run is {status.state}" + (f": {status.reason}" if status.reason else "")


def _print(content: bytes) -> None:
    sys.stdout.buffer.write(content)  # as it is: a character may be cut between two blocks
    sys.stdout.flush()


def _say(line: str) -> None:
    print(f"[{line}]", file=sys.stderr, flush=True)
