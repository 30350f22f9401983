"""Words of a command line and lines of a file as typed values."""

import math
from dataclasses import dataclass, field
from typing import Literal

import pytest

from dual_cross_attention.configs.flags import describe, read_flags, read_settings, split_flags
from dual_cross_attention.errors import InputError


@dataclass(kw_only=True)
class Oven:
    """An oven."""

    heat: float | None = None
    """How hot, in degrees."""
    racks: int = 2
    """How many racks."""
    size: int | list[int] = 60
    """One side, or height and width."""
    fan: bool = False
    """Whether the fan turns."""
    mode: Literal["bake", "grill"] = "bake"
    """What it does."""
    name: str = "oven"
    """What it is called."""
    place: str | None = None
    """Where it stands."""
    extras: dict[str, int | float | bool | str] = field(default_factory=dict)
    """What else it has."""


def read(line):
    words, flags = split_flags(line.split())
    more_words, values = read_flags(Oven, flags)
    return words + more_words, values


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("", {}),
        ("--heat 180", {"heat": 180.0}),
        ("--heat=5e-4", {"heat": 0.0005}),
        ("--heat -5", {"heat": -5.0}),
        ("--heat null", {"heat": None}),
        ("--racks 3 --racks 4", {"racks": 4}),
        ("--size 60", {"size": 60}),
        ("--size 60 40", {"size": [60, 40]}),
        ("--size 60 40 --racks 1", {"size": [60, 40], "racks": 1}),
        ("--size=[60,40]", {"size": [60, 40]}),
        ("--fan", {"fan": True}),
        ("--fan --racks 1", {"fan": True, "racks": 1}),
        ("--fan false", {"fan": False}),
        ("--fan True", {"fan": True}),
        ("--mode grill", {"mode": "grill"}),
        ("--name 7", {"name": "7"}),
        ("--name null", {"name": "null"}),
        ("--name=--odd", {"name": "--odd"}),
        ("--name a=b", {"name": "a=b"}),
        ("--place 2024", {"place": "2024"}),
        ("--place null", {"place": None}),
        ("--place {a:b}", {"place": "{a:b}"}),
        ('--extras {"light":1,"door":"left"}', {"extras": {"light": 1, "door": "left"}}),
    ],
)
def test_flags(line, values):
    words, read_values = read(line)
    assert words == []
    assert read_values == values
    assert [type(value) for value in read_values.values()] == [type(value) for value in values.values()]


def test_words_that_belong_to_no_flag():
    assert read("first second --racks 1 third --fan true fourth")[0] == ["first", "second", "third", "fourth"]


def test_values_of_a_file_are_read_like_flags():
    """YAML 1.1 takes 5e-4 for text, and so PyYAML does."""
    values = {"heat": "5e-4", "racks": 3, "size": [1, 2], "place": None, "fan": True, "extras": {"light": 1}}
    assert read_settings(Oven, values, "oven.yaml") == {**values, "heat": 5e-4}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rack": 3}, r"oven.yaml: unknown setting 'rack': did you mean racks\? there are heat, racks, "),
        ({"racks": None}, "oven.yaml: racks: expected a whole number, got null"),
        ({"racks": True}, "oven.yaml: racks: expected a whole number, got True"),
        ({"fan": 1}, "oven.yaml: fan: expected true or false, got 1"),
        ({"mode": False}, "oven.yaml: mode: expected one of bake, grill, got False"),
        ({"extras": {"a": {"b": 1}}}, "oven.yaml: extras: expected names and values"),
        ({"name": ["a"]}, r"oven.yaml: name: expected text, got \['a'\]"),
    ],
)
def test_values_of_another_type(values, message):
    with pytest.raises(InputError, match=message):
        read_settings(Oven, values, "oven.yaml")


def test_not_a_number_is_no_number():
    with pytest.raises(InputError):
        read("--heat nan")
    assert read_settings(Oven, {"heat": math.inf}, "")["heat"] == math.inf  # ranges are the settings' own matter


def test_description_has_every_field_and_default():
    text = " ".join(describe(Oven, "usage of it", "what it is for", config="a file").split())
    assert "usage: usage of it what it is for" in text
    for part in ("--config CONFIG a file", "--racks RACKS How many racks. (type: int, default: 2)", "{bake,grill}"):
        assert part in text
    assert "--size SIZE One side" in text  # and not jsonargparse's --size+, which is not read
