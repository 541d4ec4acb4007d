"""Build docs/ as a site with search, and fail on a link or anchor that leads nowhere.

README.md is the first page. A file or folder of the repository that a page links to becomes a page
of its own, so that the site is whole without a network. Formulas become MathML.

    python tools/build_docs.py [--out build]
"""

from __future__ import annotations

import argparse
import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent
SETTINGS = "docs/zensical.toml"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md")
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)(?=[)#])")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', re.DOTALL)
_PICTURES = {".png", ".jpg", ".svg", ".webp"}
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".cff": "yaml", ".c": "c"}
_LANGUAGES |= dict.fromkeys((".sh", ".sbatch"), "bash")


class BrokenPages(Exception):
    """Links that lead nowhere, as the site's builder reports them."""


def build(root: Path, out: Path) -> Path:
    """Build the site of the pages of ``root`` in ``out/site``. Raises BrokenPages."""
    shutil.rmtree(out / "docs", ignore_errors=True)
    for pattern in PAGES:
        for page in sorted(root.glob(pattern)):
            _copy_page(root, page.relative_to(root).as_posix(), out / "docs")
    shutil.copyfile(root / SETTINGS, out / "zensical.toml")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=out, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    report = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode())
    if done.returncode:
        raise BrokenPages(report.partition("Traceback (most recent call last)")[0].strip())
    for page in (out / "site").rglob("*.html"):
        text = page.read_text()
        if "arithmatex" in text:
            page.write_text(_FORMULA.sub(_mathml, text))
    return out / "site"


def _copy_page(root: Path, page: str, stage: Path) -> None:
    """Copy a page, with its links to files of the repository leading to pages of these."""
    here = Path(page).parent.as_posix()

    def moved(match: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(here, match[1]))
        return os.path.relpath(_page_of(root, target, stage), here)

    place = stage / _name(page)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(_LINK.sub(moved, (root / page).read_text()))


def _name(page: str) -> str:
    return "index.md" if page == "README.md" else page


def _page_of(root: Path, target: str, stage: Path) -> str:
    """The page of the site that stands for a path of the repository; made where it is missing."""
    path = root / target
    if any(path in root.glob(pattern) for pattern in PAGES) or not path.exists():
        return _name(target)
    if path.suffix in _PICTURES:
        place = stage / target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        return target
    if path.is_dir():
        names = sorted(
            f"{child.name}/" if child.is_dir() else child.name
            for child in path.iterdir()
            if not child.name.startswith((".", "__pycache__"))
        )
        name, body = f"{target}/index.md", "\n".join(f"- `{child}`" for child in names)
    else:
        code = path.read_text()
        fence = "`" * (max((len(run) for run in re.findall("`{3,}", code)), default=3) + 1)
        language = _LANGUAGES.get(path.suffix, "text")
        name, body = f"{target}.md", f"{fence}{language}\n{code.rstrip()}\n{fence}"
    place = stage / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"---\nsearch:\n  exclude: true\n---\n# {target}\n\n{body}\n")
    return name


def _mathml(match: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    display = "block" if match[2] == "[" else "inline"
    formula = convert(html.unescape(match[3]).strip(), display=display)
    # On a phone a long formula is scrolled, not the page.
    block = f'<div style="overflow-x: auto; margin: 1em 0">{formula}</div>'
    return formula if display == "inline" else block


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=CLONE / "build", help="default: build")
    out = parser.parse_args().out.resolve()
    try:
        import latex2mathml  # noqa: F401
        import zensical  # noqa: F401
    except ImportError as error:
        print(f"{error.name} is missing; pip install '.[docs]' installs it", file=sys.stderr)
        return 2
    try:
        site = build(CLONE, out)
    except BrokenPages as error:
        print(error, file=sys.stderr)
        return 1
    print(f"site    {site / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
