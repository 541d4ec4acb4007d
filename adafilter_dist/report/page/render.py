"""From a page's sections to one HTML file that needs no network."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from adafilter_dist.errors import UserError, printable
from adafilter_dist.report.page import vega
from adafilter_dist.report.page.blocks import Figure, Page
from adafilter_dist.system.files import write_bytes

_TEMPLATES = files("adafilter_dist.report.page") / "template"


def require_packages() -> None:
    """UserError where a package of the extra ``report`` is missing."""
    try:
        import jinja2  # noqa: F401

        vega.version()
    except ImportError:
        raise UserError(
            "a page needs vl-convert-python and Jinja2: pip install 'adafilter-dist[report]'"
        ) from None


def render(page: Page) -> str:
    """The page as HTML. Texts of the run, class names among them, are escaped."""
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=DictLoader({"page": (_TEMPLATES / "page.html.j2").read_text("utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    specs = {
        block.id: vega.completed(block.spec)
        for section in page.sections
        for block in section.blocks
        if isinstance(block, Figure)
    }
    return environment.get_template("page").render(
        page=page,
        specs=specs,
        style=Markup((_TEMPLATES / "page.css").read_text("utf-8")),
        behaviour=Markup((_TEMPLATES / "page.js").read_text("utf-8")),
        library=Markup(vega.script()),
    )


def write_page(page: Page, path: Path) -> Path:
    """Write the page; UserError where it cannot be written."""
    text = render(page)
    try:
        # Names of files need not be UTF-8.
        write_bytes(path, text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be written ({error.strerror})") from None
    return path
