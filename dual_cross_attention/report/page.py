"""Renders a template of this package as one HTML page without external resources."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape
from dual_cross_attention.version import __version__


def render(template: str, **values: Any) -> str:
    """A page; every value is escaped, names of files and classes are untrusted."""
    environment = Environment(
        loader=PackageLoader("dual_cross_attention.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_one_line,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=__version__, **values)


def write_page(path: Path, page: str) -> None:
    """Writes a page atomically.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output: cannot write '{escape(path)}': {error.strerror}: give another file") from error


def _one_line(value: Any) -> Any:
    """Text without control characters and lone surrogates, which UTF-8 cannot encode."""
    return escape(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def duration(seconds: float) -> str:
    """Such as "2 h 05 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
