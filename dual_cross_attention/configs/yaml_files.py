"""YAML files of settings, which may come from anyone."""

from pathlib import Path
from typing import Any

import yaml

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import short_repr

MAX_YAML_BYTES = 100_000
"""Largest file of settings; a run's config.yaml has 2,000 bytes."""


class PlainLoader(yaml.SafeLoader):
    """Refuses tags that make Python objects, and aliases: a few lines of them can expand to billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"expected values, got the alias *{event.anchor} in line {event.start_mark.line + 1}")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of `setting: value` lines.

    Raises:
        InputError: it cannot be read, is larger than `MAX_YAML_BYTES`, has aliases (`*name`), or holds something else.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_YAML_BYTES + 1)
        if len(raw) > MAX_YAML_BYTES:
            raise InputError(f"cannot read '{path}' as YAML: expected at most {MAX_YAML_BYTES:,} bytes of settings")
        content = yaml.load(raw.decode("utf-8"), PlainLoader)
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"cannot read '{path}' as YAML: it is nested too deeply for settings") from error
    except Exception as error:  # month 13, a number of 5,000 digits: PyYAML passes on what Python raises
        raise InputError(f"cannot read '{path}' as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"'{path}': expected lines of 'setting: value', got {short_repr(content)}")
    return content
