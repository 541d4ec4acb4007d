"""The pages that people copy from, taken apart: commands, Python, and what is neither.

A block is indented by four blanks, fenced, or a part of a comment or docstring that is indented. In
running text a command is one in backticks that names more than a program and a verb.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from adafilter_dist.__main__ import VERBS

CLONE = Path(__file__).parents[2]
PROGRAMS = (
    *("adafilter", "torchrun", "python", "pytest", "make", "sbatch", "pip", "scancel"),
    *("source", "git", "sudo", "conda", "uv"),
)
_PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md")
_HEADERS = ("recipes/**/*.yaml", "slurm/*.sbatch", "constraints.txt")
_DOCSTRINGS = ("examples/*.py", "launch/*.py", "benchmarks/*.py")
# In running text these are spoken of; what is to be typed names more than these.
_MENTIONED = re.compile(r"(adafilter|pip|git|pytest|uv) \S+|adafilter \S+ --[a-z-]+|scancel.*|\S+")
_VARIABLE = re.compile(r"[A-Z_]+=\S*$")
_SETTING = re.compile(r"[a-z_]+(\.[a-z_0-9]+)+=\S+$")
_LABEL = re.compile(r"^(?:\$ |(?:follow|status|cancel|resume) {2,})")


Numbered = list[tuple[int, str]]
"""Lines with their numbers."""


@dataclass(frozen=True)
class Command:
    """What is typed: ``text`` is one command, with its continuation lines joined to it."""

    page: str
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        """As a shell takes them apart, without variables before the program."""
        words = shlex.split(self.text)
        while _VARIABLE.match(words[0]):
            words = words[1:]
        return words

    @property
    def program(self) -> str:
        return self.words[0]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Block:
    """The lines of a block that are no commands: Python, words of a recipe, or something else."""

    page: str
    line: int
    text: str

    @property
    def is_python(self) -> bool:
        """Whether it is code that uses the package."""
        try:
            ast.parse(self.text)
        except SyntaxError:
            return False
        return "adafilter_dist." in self.text or "import " in self.text

    @property
    def settings(self) -> list[str]:
        """key=value on each line, and nothing else; else empty."""
        words = [word for line in self.text.splitlines() for word in shlex.split(line, True)]
        return words if all(_SETTING.match(word) for word in words) else []

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0]}"


@cache
def by_page() -> dict[str, list[Command]]:
    """The commands of each page, in their order."""
    return {name: taken_apart(name, numbered)[0] for name, numbered in _texts()}


@cache
def collected() -> tuple[list[Command], list[Block]]:
    """All that the pages hold, in order; a command is named where it stands first."""
    commands: dict[str, Command] = {}
    blocks: list[Block] = []
    for name, numbered in _texts():
        here, others = taken_apart(name, numbered)
        blocks += others
        for command in here:
            commands.setdefault(command.text, command)
    for verb in ("", *VERBS):
        for text in _help(verb):
            page = " ".join(["adafilter", *verb.split(), "--help"])
            commands.setdefault(text, Command(page, 0, text))
    return list(commands.values()), blocks


def taken_apart(name: str, numbered: Numbered) -> tuple[list[Command], list[Block]]:
    """The commands of a page's blocks and of its text, and what else the blocks hold."""
    commands: list[Command] = []
    blocks: list[Block] = []
    inside, around = _parted(numbered)
    for lines in inside:
        rest = []
        for number, line in _joined(lines):
            typed = _typed(line)
            commands += [Command(name, number, text) for text in typed]
            rest += [] if typed else [(number, line)]
        if any(line.strip() for _, line in rest):
            first = next(number for number, line in rest if line.strip())
            text = textwrap.dedent("\n".join(line for _, line in rest)).strip("\n")
            blocks.append(Block(name, first, text))
    for number, span in _spans(around):
        if not _MENTIONED.fullmatch(span):
            commands += [Command(name, number, text) for text in _typed(span)]
    return commands, blocks


def _typed(line: str) -> list[str]:
    """The commands of a line, without its comment; none where it holds none."""
    bare = _LABEL.sub("", line.strip())
    try:
        words = shlex.split(bare, comments=True)
    except ValueError:  # an apostrophe of a sentence
        return []
    while words and _VARIABLE.match(words[0]):
        words = words[1:]
    if not words or words[0] not in PROGRAMS:
        return []
    bare = re.sub(r"\s+#.*$", "", bare)
    return [re.sub(r"\s+", " ", part).strip() for part in bare.split("&&")]


def _help(verb: str) -> Iterator[str]:
    """The examples of a verb's help."""
    main = importlib.import_module("adafilter_dist.__main__").main
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([verb, "--help"] if verb else ["--help"])
    text = printed.getvalue()
    if verb:
        text = re.split(r"^examples?:\n", text, flags=re.MULTILINE)[1].partition("\n\n")[0]
    else:
        text = re.findall(r"^e\.g\. (.*)", text, re.MULTILINE)[0]
    for line in text.splitlines():
        typed = _typed(line)
        assert typed, f"adafilter {verb} --help has an example that is no command: {line}"
        yield from typed


def _texts() -> Iterator[tuple[str, Numbered]]:
    """Pages by their names; of comments and docstrings what they say, as Markdown would have it."""
    for pattern in _PAGES:
        for path in sorted(CLONE.glob(pattern)):
            yield _name(path), list(enumerate(path.read_text().splitlines(), 1))
    for pattern in _HEADERS:
        for path in sorted(CLONE.glob(pattern)):
            comments: Numbered = []
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if re.match(r"#( |$)", line):
                    indented = re.match(r"#\s{3,}", line)
                    # In a comment a command may stand right below the sentence that ends in it.
                    blank = indented and comments and not _open(comments[-1][1])
                    comments += [(number, "")] if blank else []
                    comments.append(
                        (number, re.sub(r"^#(\s{3,}| ?)", "    " if indented else "", line))
                    )
            yield _name(path), comments
    for pattern in _DOCSTRINGS:
        for path in sorted(CLONE.glob(pattern)):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            yield _name(path), list(enumerate(text.splitlines(), 1))


def _name(path: Path) -> str:
    return path.relative_to(CLONE).as_posix()


def _parted(lines: Numbered) -> tuple[list[Numbered], Numbered]:
    """The blocks of a page, and the text around them."""
    blocks: list[Numbered] = []
    around: Numbered = []
    fenced = False
    before = ""
    for number, line in lines:
        if line.startswith("```"):
            fenced = not fenced
            blocks += [[]] if fenced else []
        elif fenced or (line.startswith("    ") and (_open(before) or not before.strip())):
            if not fenced and not (blocks and _open(before)):
                blocks.append([])
            blocks[-1].append((number, line))
        else:
            around.append((number, line))
            if not line.strip() and blocks and blocks[-1] and before.startswith("    "):
                blocks[-1].append((number, ""))
                continue  # a blank line does not end a block
        before = line
    return [block for block in blocks if block], around


def _open(before: str) -> bool:
    """Whether the line before is one of a block."""
    return before.startswith("    ")


def _joined(lines: Numbered) -> Iterator[tuple[int, str]]:
    """Lines with those that continue them."""
    held: tuple[int, str] | None = None
    for number, line in lines:
        start, text = (held[0], held[1] + line.strip()) if held else (number, line)
        held = (start, text[:-1]) if text.endswith("\\") else None
        if held is None:
            yield start, text
    assert held is None, f"line {lines[-1][0]} ends with a backslash, and nothing follows"


def _spans(lines: Numbered) -> Iterator[tuple[int, str]]:
    """What stands in backticks, also over the end of a line."""
    text = "\n".join(line for _, line in lines)
    numbers = [number for number, _ in lines]
    for match in re.finditer(r"(?<!`)(`{1,2})([^`]+)\1(?!`)", text):
        yield numbers[text.count("\n", 0, match.start())], " ".join(match[2].split())
