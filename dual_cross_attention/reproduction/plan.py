"""Which trainings a call of `dcal reproduce` has, and what its table says about itself."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.errors import InputError
from dual_cross_attention.reproduction.summary import RowRuns
from dual_cross_attention.reproduction.sweep import Training
from dual_cross_attention.reproduction.tables import TABLES, Scale, TableRow, table_rows

NOT_IN_TRAIN_FLAGS = ("--config", "--output_dir", "--resume", "--task", "--dataset", "--seed")
"""Flags of `dcal train` that --train_flags cannot have: the sweep sets them."""
SETTINGS_OF_ROWS = ("ablation", "backbone", "backbone_kwargs")
"""Settings that make a row what it is, beside its own."""


class Request(Protocol):
    """What is asked for; see the command's options of these names."""

    table: str
    rows: list[str]
    seeds: list[int]
    scale: Scale
    data_root: str | None
    distractor_root: str | None
    train_flags: str


@dataclass(frozen=True)
class Plan:
    """The rows of a table with their trainings.

    Args:
        title: of the table.
        rows: those that are asked for and those with runs in the folder, each with its trainings by seed.
        trainings: those that are asked for, each once, seed by seed, so that pairs of runs are complete early.
        notes: how the table was made, a line each.
    """

    title: str
    rows: list[RowRuns]
    trainings: list[Training]
    notes: list[str]


def make_plan(request: Request, folder: Path) -> Plan:
    """The plan of a call.

    The table has the runs of other calls in the folder as well, of other rows and other seeds, so that machines which
    divide a table write the same one.

    Args:
        request: the table, its rows and how to train them.
        folder: where run folders are.

    Raises:
        InputError: rows that do not exist, or flags that the rows set themselves.
    """
    further = _further_flags(request.train_flags)
    everything = table_rows(request.table, distractor_root=request.distractor_root)
    chosen = {row.name for row in table_rows(request.table, request.rows)}
    if request.data_root and request.scale == "cpu":
        raise InputError("--data_root: --scale cpu trains on synthetic data: leave it out, or take --scale paper")
    data = ["--data_root", request.data_root] if request.data_root else []
    rows, asked = [], {}
    for row in everything:
        trainings = {}
        if not row.missing:
            arguments = [*row.arguments(request.scale), *data, *further]
            config = _settings(row, request.scale, arguments) if row.name in chosen else parse_config(arguments)
            name = row.run_name(request.scale)
            seeds = request.seeds if row.name in chosen else ()
            for seed in sorted({*seeds, *_seeds_in(folder, name)}):
                path = folder / f"{name}-seed{seed}"
                trainings[seed] = Training(path, [*arguments, "--seed", f"{seed}"], config.replaced(seed=seed))
            asked |= {(request.seeds.index(seed), trainings[seed].path): trainings[seed] for seed in seeds}
        if row.name in chosen or trainings:
            rows.append(RowRuns(row, trainings))
    shown = sorted({seed for each in rows for seed in each.trainings} | {*request.seeds})
    notes = [
        "scores of the last epoch on the test split; ours: mean ± standard deviation over seeds "
        f"{', '.join(map(str, shown))}; intervals: the wider of a t interval over paired seeds and a bootstrap "
        "over test images"
    ]
    if request.scale == "cpu":
        small = "small protocol (--scale cpu): synthetic data and a small backbone; not comparable with published ones"
        notes.insert(0, small)
    if further:
        notes.append(f"further settings of all runs: {shlex.join(further)}")
    in_turns = sorted(asked, key=lambda place: place[0])  # rows keep their order: the sort is stable
    return Plan(TABLES[request.table], rows, [asked[place] for place in in_turns], notes)


def _seeds_in(folder: Path, name: str) -> list[int]:
    """Seeds of the run folders of a row."""
    endings = [path.name.removeprefix(f"{name}-seed") for path in folder.glob(f"{name}-seed*") if path.is_dir()]
    return [int(ending) for ending in endings if ending.isdecimal()]


def _further_flags(text: str) -> Sequence[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"--train_flags: {error}, got '{text}'") from None
    for word in words:
        if (name := word.partition("=")[0]) in NOT_IN_TRAIN_FLAGS:
            raise InputError(f"--train_flags: {name} is set by the rows of the table: leave it out")
    return words


def _settings(row: TableRow, scale: Scale, arguments: list[str]) -> TrainingConfig:
    """The settings that arguments are, for any seed.

    Raises:
        InputError: they are invalid, or change what the row is about.
    """
    expected, config = parse_config(row.arguments(scale)), parse_config(arguments)
    for name in (*SETTINGS_OF_ROWS, *row.settings):
        if getattr(config, name) != getattr(expected, name):
            raise InputError(
                f"--train_flags: {name} is set by the row {row.name}, to {getattr(expected, name)}: leave it out"
            )
    return config
