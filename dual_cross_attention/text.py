"""Untrusted names and values, escaped and shortened for one-line messages."""

import reprlib
from collections.abc import Sequence

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 4, 8, 8, 80, 80, 80


def escape(name: object) -> str:
    """A name as one line of text: line breaks, control characters and bytes that are no UTF-8 are escaped (`\\n`)."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in f"{name}"
    )


def short_repr(value: object) -> str:
    """A value in a message: as Python writes it, cut where it is long or deep."""
    try:
        return escape(_SHORT.repr(value))
    except Exception:  # such as a number of more digits than Python writes
        return f"a {type(value).__name__} that cannot be shown"


def few(names: Sequence[str], shown: int = 10) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(escape(name) for name in names[:shown]) + more
