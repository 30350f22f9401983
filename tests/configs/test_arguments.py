"""Words of a command line and lines of a file as typed values."""

import math
import shlex
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from dual_cross_attention.configs.arguments import OptionParser, positional, read_options
from dual_cross_attention.configs.values import read_settings
from dual_cross_attention.errors import InputError
from tests.helpers import assert_says


@dataclass(kw_only=True)
class Oven:
    """An oven that is 100 % safe."""

    EXAMPLE: ClassVar = "dcal oven --heat 180"
    GROUPS: ClassVar = {"cooking": "heat mode fan", "empty": ""}

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
    """What else it has, 10 % of it."""


@dataclass(kw_only=True)
class Meal(Oven):
    """A meal."""

    recipe: str = positional("RECIPE")
    """What is cooked."""
    sides: list[str] = positional("SIDE", default_factory=list)
    """What is eaten with it."""
    heat: float | None = 200.0


@dataclass(kw_only=True)
class Order(Oven):
    """Needs words, and a flag."""

    dishes: list[str] = positional("DISH")
    """What is eaten."""
    guest: str
    """Who eats it."""


def read(line, options=Oven):
    return OptionParser(options, "oven", "An oven.").read(shlex.split(line))


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
        ("--place '#1'", {"place": "#1"}),
        ("""--extras '{"light": 1, "door": "left"}' --fan""", {"extras": {"light": 1, "door": "left"}, "fan": True}),
        ("""--fan '--extras={"light": 1e-3}'""", {"extras": {"light": 0.001}, "fan": True}),
    ],
)
def test_flags(line, values):
    read_values = read(line)
    assert read_values == values
    values = {name: values[name] for name in read_values}
    assert [type(value) for value in read_values.values()] == [type(value) for value in values.values()]


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("--rack 3", ("unknown", "--rack: ", "--racks?", "--heat, --racks, ")),
        ("--hea 3", ("unknown", "--hea: ")),  # no abbreviations
        ("'--rack=a b' --fan", ("unknown", "--rack: ")),
        ("--fan '--rack=a b'", ("--fan: ", "true or false", "'--rack=a b'")),
        ("word", ("dcal oven: ", "'word'", "dcal oven [--SETTING VALUE ...]")),
        ("--racks 3 word", ("dcal oven: ", "'word'")),
        ("--racks", ("--racks: ", "whole number", "nothing")),
        ("--racks --heat 3", ("--racks: ", "whole number", "nothing")),
        ("--size 1 2 x", ("--size: ", "whole number", "two", "'[1,2,x]'")),
        ("--heat ''", ("--heat: ", "a number", "null", "got ''")),
        ("--place ''", ("--place: ", "text", "empty")),
        ("--heat '#1'", ("--heat: ", "a number", "null", "'#1'")),
        ("""--extras '{"a": null}'""", ("--extras: ", "names and values")),
        ("--help=3", ("-h/--help: ",)),
    ],
)
def test_errors_are_one_line(line, tokens):
    with pytest.raises(InputError) as caught:
        read(line)
    assert len(str(caught.value).splitlines()) == 1
    assert_says(caught.value, *tokens)


@pytest.mark.parametrize(
    ("line", "recipe", "sides"),
    [
        ("pie", "pie", []),
        ("pie --racks 3 --fan", "pie", []),
        ("--racks 3 pie", "pie", []),
        ("--fan true pie a --racks 3 b c", "pie", ["a", "b", "c"]),
        ("pie a --size 60 40", "pie", ["a"]),
        ("./-pie -", "./-pie", ["-"]),
    ],
)
def test_positional_arguments_stand_anywhere(line, recipe, sides):
    meal = read_options(Meal, "cook", shlex.split(line))
    assert (meal.recipe, meal.sides, meal.heat) == (recipe, sides, 200.0)


@pytest.mark.parametrize(
    ("options", "line", "told"),
    [
        (Meal, "--fan", "dcal oven: .*RECIPE"),
        (Order, "--guest me", "dcal oven: .*DISH"),
        (Order, "pie", "dcal oven: .*--guest"),
        (Order, "pie --guests me", r"--guests: .*--guest\?"),
        (Order, "pie --guest me --racks many", "--racks: expected"),
        (Order, "pie --guest me --dishes 3", "--dishes: .*--heat, "),
    ],
)
def test_missing_required_arguments(options, line, told):
    with pytest.raises(InputError, match=told):
        read(line, options)


def test_required_arguments_are_in_the_usage():
    assert OptionParser(Order, "oven", "").usage == "dcal oven DISH ... --guest TEXT [--SETTING VALUE ...]"
    assert OptionParser(Meal, "oven", "").usage == "dcal oven RECIPE SIDE ... [--SETTING VALUE ...]"


def test_values_of_a_file_are_read_like_flags():
    """YAML 1.1 takes 5e-4 for text, and so PyYAML does."""
    values = {"heat": "5e-4", "racks": 3, "size": [1, 2], "place": None, "fan": True, "extras": {"light": 1}}
    assert read_settings(Oven, values, "oven.yaml") == {**values, "heat": 5e-4}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rack": 3}, r"oven.yaml: .*'rack': .* racks\? .*heat, racks, "),
        ({"racks": None}, r"oven.yaml: racks: .*whole number.* null"),
        ({"racks": True}, r"oven.yaml: racks: .*whole number.* True"),
        ({"fan": 1}, r"oven.yaml: fan: .*true or false.* 1"),
        ({"mode": False}, r"oven.yaml: mode: .*bake, grill.* False"),
        ({"extras": {"a": {"b": 1}}}, r"oven.yaml: extras: .*names and values"),
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


def test_help_has_an_example_and_every_field_with_type_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as end:
        read_options(Oven, "oven", ["--help", "--unknown"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert text.startswith(
        "example:\n  dcal oven --heat 180\n\nusage: dcal oven [--SETTING VALUE ...]\n\nAn oven that "
    )
    assert text.index("\ncooking:") < text.index("--heat FLOAT|null") and "empty:" not in text
    assert text.index("--racks INT") < text.index("\ncooking:")  # in no group
    text = " ".join(text.split())
    for part in (
        "An oven that is 100 % safe.",
        "--heat FLOAT|null How hot, in degrees. (default: null)",
        "--size INT [INT ...] One side, or height and width. (default: 60)",
        "--fan [true|false] Whether the fan turns. (default: false)",
        "--mode bake|grill What it does. (default: bake)",
        "--extras YAML What else it has, 10 % of it. (default: {})",
    ):
        assert part in text
    assert "How hot, in degrees. (default: 200.0)" in " ".join(OptionParser(Meal, "meal", "").format_help().split())
