"""The command line: `dcal train`, `dcal eval`. Flags are the fields of the settings."""

import argparse
import difflib
import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, set_parsing_settings
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from dual_cross_attention.configs import FGVC_CONFIGS, FGVCConfig
from dual_cross_attention.errors import InputError, TrainingDivergedError
from dual_cross_attention.version import __version__

RECIPES = Path(__file__).parent / "configs" / "recipes"
COMMANDS = {"train": "train a model", "eval": "evaluate a trained model on the test split"}
USAGE = f"""usage: dcal COMMAND …   (dcal COMMAND --help says more)

{chr(10).join(f"  {name:8}{what}" for name, what in COMMANDS.items())}

Dual Cross-Attention Learning {__version__}. Without arguments, `dcal train` trains the built-in toy task in minutes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for what the user can mend, 3 for a diverged training."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    logging.basicConfig(level="WARNING", format="%(message)s", handlers=[RichHandler(show_time=False, show_path=False)])
    logging.getLogger("dual_cross_attention").setLevel("INFO")
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(USAGE)
            return 0
        if arguments[0] == "--version":
            print(__version__)
            return 0
        command, *rest = arguments
        if command not in COMMANDS:
            raise InputError(f"unknown command '{command}': there is {', '.join(COMMANDS)}")
        return {"train": _train, "eval": _evaluate}[command](rest)
    except (InputError, ArgumentError) as error:
        errors.print(f"dcal: error: {_one_line(error)}")
        return 2
    except TrainingDivergedError as error:
        errors.print(f"dcal: error: {_one_line(error)}")
        return 3


def parse_config(arguments: Sequence[str]) -> FGVCConfig:
    """Flags, over a --config file, over the data set's defaults.

    Raises:
        InputError: unknown data set, flag or value.
    """
    # What decides on the parser is read first: which task, which data set, which file.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", "task", "dataset"):
        first.add_argument(f"--{name}", nargs="?")
    chosen, arguments = first.parse_known_args(_join_sizes(arguments))
    in_file = {}
    if chosen.config is not None:
        path = _find_recipe(chosen.config)
        in_file = _read_yaml(path)
        arguments = ["--config", str(path), *arguments]  # before all flags, so that flags win
    task = chosen.task or in_file.get("task", "fgvc")
    dataset = chosen.dataset or in_file.get("dataset", "toy")
    arguments += ["--task", task, "--dataset", dataset]
    if task != "fgvc":
        raise InputError(f"unknown task '{task}': there is fgvc")
    if dataset not in FGVC_CONFIGS:
        raise InputError(f"unknown data set '{dataset}': there are {', '.join(FGVC_CONFIGS)}")

    settings = FGVC_CONFIGS[dataset]
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="dcal train", exit_on_error=False, default_env=False,
        description=f"Train a model. Defaults are those of --dataset {dataset}; other data sets: {', '.join(FGVC_CONFIGS)}.",
    )  # fmt: skip
    parser.add_argument(
        "--config", action=ActionConfigFile,
        help=f"YAML file of settings, such as a run's config.yaml, or a recipe: {', '.join(recipe_names())}.",
    )  # fmt: skip
    parser.add_class_arguments(settings)
    names = {field.name for field in fields(settings)}
    for argument in arguments:
        flag = argument.removeprefix("--").split("=")[0].split(".")[0]
        if argument.startswith("--") and flag not in names | {"config", "help", "print_config"}:
            close = difflib.get_close_matches(flag, names, n=1)
            hint = f"did you mean --{close[0]}? " if close else ""
            raise InputError(f"unknown flag --{flag}: {hint}there are {', '.join(f'--{field.name}' for field in fields(settings))}")
    namespace = parser.parse_args(arguments).as_dict()
    namespace.pop("config", None)
    namespace.pop("print_config", None)
    return settings(**namespace)


def recipe_names() -> list[str]:
    """Recipes that come with the package, usable as `--config NAME`."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _train(arguments: list[str]) -> int:
    config = parse_config(arguments)
    from dual_cross_attention import runs  # late: --help need not wait for torch

    runs.train(config, Console(highlight=False))
    return 0


def _evaluate(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="dcal eval", exit_on_error=False,
        description="Top-1 and top-5 accuracy of SA, GLCA and both together, on the test split.",
    )  # fmt: skip
    parser.add_argument("model", type=str, metavar="RUN_OR_CHECKPOINT", help="a run's folder (its best model), or a .safetensors of one")
    parser.add_argument("--data_root", type=str | None, help="the data set; unset: where the run found it")
    parser.add_argument("--batch_size", type=int | None, help="pictures of one forward pass")
    parser.add_argument("--num_workers", type=int | None, help="processes that read pictures")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--precision", type=str, default="auto", help="auto, fp32, bf16 or fp16")
    parser.add_argument("--json", type=str | None, metavar="FILE", help="write the result as JSON here; - is standard output")
    given = parser.parse_args(arguments)
    from dual_cross_attention import runs

    console = Console(stderr=given.json == "-", highlight=False)
    result = runs.evaluate(
        given.model, given.data_root, given.device, given.precision, given.batch_size, given.num_workers, console
    )
    table = Table(title=f"{result['dataset']}, {result['images']} test pictures")
    for column in ("branch", "top-1 %", "top-5 %"):
        table.add_column(column, justify="left" if column == "branch" else "right")
    for suffix, name in (("_sa", "SA"), ("_glca", "GLCA"), ("", "SA + GLCA")):
        if f"top1{suffix}" in result and (suffix or "top1_glca" in result):
            table.add_row(name, f"{result[f'top1{suffix}']:.2f}", f"{result[f'top5{suffix}']:.2f}")
    console.print(table)
    if result["unreadable"]:
        console.print(f"{result['unreadable']} pictures could not be read and were left out")
    if given.json == "-":
        print(json.dumps(result, indent=2))
    elif given.json:
        Path(given.json).write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _find_recipe(name: str) -> Path:
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    raise InputError(f"no config file '{name}': expected a YAML file, or one of the recipes {', '.join(recipe_names())}")


def _read_yaml(path: Path) -> dict:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read '{path}' as YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"'{path}': expected lines of 'setting: value'")
    return content


def _join_sizes(arguments: Sequence[str]) -> list[str]:
    """`--img_size 256 128` → `--img_size [256,128]`, the form that the parser reads."""
    return re.sub(
        r"(?<=\0)(--(?:img_size|resize_size))\0(\d+)\0(\d+)(?=\0|$)", "\\1\0[\\2,\\3]", "\0" + "\0".join(arguments)
    ).split("\0")[1:]


def _one_line(error: Exception) -> str:
    message = str(error)
    if "Original Traceback" in message:  # raised in a data worker: what matters is at the end
        message = message.strip().splitlines()[-1].partition(": ")[2]
    message = re.sub(r'Parser key "([^"]+)":', r"--\1:", message)
    return " ".join(message.split())
