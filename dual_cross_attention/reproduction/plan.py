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
        rows: with their trainings by seed.
        notes: how the table was made, a line each.
    """

    title: str
    rows: list[RowRuns]
    notes: list[str]

    @property
    def trainings(self) -> list[Training]:
        """Each training once, seed by seed, so that pairs of runs are complete early."""
        seeds = dict.fromkeys(seed for each in self.rows for seed in each.trainings)
        found = [each.trainings[seed] for seed in seeds for each in self.rows if seed in each.trainings]
        return list({training.path: training for training in found}.values())


def make_plan(request: Request, folder: Path) -> Plan:
    """The plan of a call.

    Args:
        request: the table, its rows and how to train them.
        folder: where run folders are.

    Raises:
        InputError: rows that do not exist, or flags that the rows set themselves.
    """
    further = _further_flags(request.train_flags)
    chosen = table_rows(request.table, request.rows, request.distractor_root)
    if request.data_root and request.scale == "cpu":
        raise InputError("--data_root: --scale cpu trains on synthetic data: leave it out, or take --scale paper")
    data = ["--data_root", request.data_root] if request.data_root else []
    rows = []
    for row in chosen:
        trainings = {}
        if not row.missing:
            arguments = [*row.arguments(request.scale), *data, *further]
            config = _settings(row, request.scale, arguments)
            for seed in request.seeds:
                path = folder / f"{row.run_name(request.scale)}-seed{seed}"
                trainings[seed] = Training(path, [*arguments, "--seed", f"{seed}"], config.replaced(seed=seed))
        rows.append(RowRuns(row, trainings))
    notes = [
        "scores of the last epoch on the test split; ours: mean ± standard deviation over seeds "
        f"{', '.join(map(str, request.seeds))}; intervals: the wider of a t interval over paired seeds and a bootstrap "
        "over test images"
    ]
    if request.scale == "cpu":
        small = "small protocol (--scale cpu): synthetic data and a small backbone; not comparable with published ones"
        notes.insert(0, small)
    if further:
        notes.append(f"further settings of all runs: {shlex.join(further)}")
    return Plan(TABLES[request.table], rows, notes)


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
