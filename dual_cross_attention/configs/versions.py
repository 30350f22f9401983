"""Format versions of settings: what a file means that does not name a setting.

Every file that this project writes has a `format_version`. A setting that is added later, or whose default changes,
declares what files of earlier formats mean without it:

    new: float = setting(0.0, before={1: 0.0})      # added in format 2; files without it mean 0.0
    changed: float = setting(0.5, before={2: 0.1})  # default changed from 0.1 to 0.5 in format 3

So an existing run, model file or `--config` file keeps its behavior whatever today's defaults are.
"""

from collections.abc import Mapping
from dataclasses import MISSING, field, fields
from typing import Any

from dual_cross_attention.errors import InputError

FORMAT_VERSION = 3
"""Of all files that are written. Raise it when you declare a `before` that is not the default."""
FIRST_VERSION = 1
"""Of files that were written before they had a `format_version`."""


def setting(default: Any = MISSING, *, before: Mapping[int, Any], default_factory: Any = MISSING) -> Any:
    """A dataclass field with a history.

    Args:
        default, default_factory: today's default, as of `dataclasses.field`.
        before: {version: value}: a file of that format version or an older one that does not name the setting means
            this value.
    """
    return field(default=default, default_factory=default_factory, metadata={"before": dict(before)})


def earlier_defaults(settings: type, version: int, *, complete: bool) -> dict[str, Any]:
    """Values of the settings that a file of a format version does not name, where they are not today's defaults.

    Args:
        settings: a dataclass.
        version: the file's.
        complete: whether the file names all settings of its time, as those of a run and the header of a model do. What
            it does not name did not exist then, so it never takes today's default, even if the version says otherwise.

    Returns:
        Values by name.
    """
    values = {}
    for each in fields(settings):
        before = each.metadata.get("before", {})
        if reached := [last for last in before if last >= version]:
            values[each.name] = before[min(reached)]
        elif before and complete:
            values[each.name] = before[max(before)]
    return values


def check_version(version: Any, source: str) -> int:
    """A `format_version` out of a file; None is the first one.

    Raises:
        InputError: it is none, or of a later version of this project.
    """
    if version is None:
        return FIRST_VERSION
    if type(version) is not int or version < FIRST_VERSION:
        raise InputError(f"{source}: format_version: expected a whole number of at least {FIRST_VERSION}")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{source} has format_version {version}, and this version of dual-cross-attention reads up to "
            f"{FORMAT_VERSION}: update it"
        )
    return version


def check_header_version(header: Mapping[str, str], source: str) -> int:
    """The `format_version` in the metadata of a `.safetensors`, which is text; raises as `check_version` does."""
    version = header.get("format_version")
    return check_version(int(version) if version and version.isdecimal() else version, source)
