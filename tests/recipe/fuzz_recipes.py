"""What fuzzing tries on recipes: any bytes as a file, any words on the command line.

Whatever comes, the end is a recipe that is written and read back to the same, or one UserError of
printable lines. ``test_fuzz.py`` tries some hundred inputs made by hypothesis; by hand, for as long
as one likes, guided by coverage, with atheris in an environment of its own:

    pip install atheris pydantic pyyaml
    python -m tests.recipe.fuzz_recipes -max_total_time=600 -timeout=5 CORPUS_FOLDER
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # what is to be watched is instrumented as it is imported
    import atheris

    with atheris.instrument_imports(include=["adafilter_dist", "yaml"]):
        import adafilter_dist.recipe  # noqa: F401

import yaml

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe, dump_recipe, load_recipe, yaml_loader

BASE = "name: mine\ndata: {name: imagefolder, root: /pictures}\n"
_LONGEST_LINE = 1200


def try_file(content: bytes, folder: Path) -> Recipe | None:
    """Load a file of these bytes; None where it is refused in the way that a mistake is."""
    file = folder / "fuzzed.yaml"
    file.write_bytes(content)
    return _try([f"recipe={file}"], folder)


def try_words(words: list[str], folder: Path) -> Recipe | None:
    """Load a good file with these words over it."""
    file = folder / "base.yaml"
    if not file.exists():
        file.write_text(BASE)
    return _try([f"recipe={file}", *words], folder)


def _try(words: list[str], folder: Path) -> Recipe | None:
    try:
        recipe = load_recipe(words)
    except UserError as error:
        lines = str(error).splitlines()
        assert lines and len(lines) <= 21, lines
        for line in lines:
            assert line.isprintable() and 0 < len(line) < _LONGEST_LINE, line
        return None
    again = folder / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe([f"recipe={again}"]) == recipe
    return recipe


def _input(data: bytes, folder: Path) -> None:
    """The first byte says what the others are, and by which of PyYAML's parsers they are read."""
    kind, rest = (data[0], data[1:]) if data else (0, b"")
    parsers = (yaml.CSafeLoader, yaml.SafeLoader)
    yaml_loader._PARSER = parsers[kind & 1]
    if kind & 6 == 0:
        try_file(rest, folder)
    elif kind & 6 == 2:
        try_file(BASE.encode() + rest, folder)
    else:
        text = rest.decode(errors="surrogateescape")
        try_words(text.split("\0" if "\0" in text else "\n"), folder)


def _corpus(folder: Path) -> None:
    """Inputs to begin with: the shipped and the resolved recipes, and words from the tests."""
    clone = Path(__file__).parent.parent.parent
    for path in (*clone.glob("recipes/**/*.yaml"), *clone.glob("tests/recipe/resolved/*.yaml")):
        (folder / path.name).write_bytes(b"\0" + path.read_bytes())
    for number, line in enumerate((clone / "README.md").read_text().splitlines()):
        if line.startswith("    adafilter train "):
            words = "\n".join(shlex.split(line, comments=True)[2:])
            (folder / f"words-{number}").write_bytes(b"\xff" + words.encode())


def main() -> None:
    """Fuzz until stopped, as libFuzzer's options say."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folders = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
        for corpus in folders[:1]:
            corpus.mkdir(exist_ok=True)
            _corpus(corpus)
        atheris.Setup(sys.argv, lambda data: _input(data, Path(name)))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
