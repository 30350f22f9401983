"""The command line: `dcal train`, `eval`, `check-data`, `shard`. Flags are the fields of the settings."""

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.table import Table

from dual_cross_attention.configs.flags import describe, read_flags, split_flags
from dual_cross_attention.configs.parse import describe_config, parse_config
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.errors import InputError, InterruptedRun, LostProcessError, TrainingDivergedError
from dual_cross_attention.progress import make_console
from dual_cross_attention.text import printable
from dual_cross_attention.training.signals import ending_at_once
from dual_cross_attention.version import __version__

COMMANDS = {
    "train": "train a model",
    "eval": "evaluate a trained model on the test split",
    "check-data": "look at every picture of a data set before a training does",
    "shard": "write a data set of very many pictures into tar archives, to train from",
}
SHOWN_BAD = 20  # of the pictures that cannot be read, on the screen
METRICS = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "mAP": "mAP %",
    "rank1": "rank-1 %",
    "rank5": "rank-5 %",
    "rank10": "rank-10 %",
}
USAGE = f"""usage: dcal COMMAND …   (dcal COMMAND --help says more)

{chr(10).join(f"  {name:12}{what}" for name, what in COMMANDS.items())}

Dual Cross-Attention Learning {__version__}. Without arguments, `dcal train` trains the built-in toy task in minutes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, 1 for a data set with pictures that cannot be read or a training of which another process
        has ended, 2 for what the user can mend, 3 for a diverged training, 75 for one that was asked to leave and can
        go on, 130 after Ctrl-C elsewhere. One of several processes that train together does not return, and ends with
        it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    status = _run(arguments)
    if arguments[:1] == ["train"] and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _end(status)
    return status


def _end(status: int) -> None:
    """End this process without Python's own tidying up.

    FSDP's caches keep PyTorch's connections, whose threads live on until then; one that still has something to free
    aborts the process, now and then, and the launcher takes a finished training for a failed one.
    """
    for stream in (sys.stdout, sys.stderr):
        _flush_or_forget(stream)
    os._exit(status)


def _run(arguments: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal's encoding has not
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
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
        run = {"train": _train, "eval": _evaluate, "check-data": _check_data, "shard": _shard}[command]
        return run(rest) or 0
    except InputError as error:
        return _fail(error, 2)
    except TrainingDivergedError as error:
        return _fail(error, 3)
    except LostProcessError as error:
        return _fail(error, 1)
    except InterruptedRun as error:
        return _fail(error, 75)
    except BrokenPipeError:  # the reader has seen enough: dcal train --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain once more at exit
        return 0
    except KeyboardInterrupt:
        return _fail("interrupted; a training goes on from its last checkpoint with the same command", 130)


@dataclass(kw_only=True)
class EvalOptions:
    """Options"""

    dataset: str | None = None
    """Another data set of the same task; unset: that of the run."""
    data_root: str | None = None
    """The data set; unset: where the run found it."""
    feature: Literal["before_neck", "after_neck"] | None = None
    """Re-identification: retrieve with features before or after the BN neck; unset: as in the run."""
    distance: Literal["euclidean", "cosine"] | None = None
    """Re-identification: distance between features; unset: as in the run."""
    normalize_features: bool | None = None
    """Re-identification: scale features to length 1 first; unset: as in the run."""
    rerank: bool = False
    """Re-identification: re-rank by k-reciprocal neighbours (Zhong et al. 2017)."""
    save_ranking: str | None = None
    """Re-identification: write for each query the gallery files in order, with distances, to this file (JSON Lines)."""
    ranking_depth: int | None = None
    """Of save_ranking: the nearest so many files of each query; unset: all, which takes 3 GB for Market-1501."""
    batch_size: int | None = None
    """Pictures of one forward pass; unset: as in the run."""
    num_workers: int | None = None
    """Processes that read pictures; unset: as in the run."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA, else MPS, else CPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """auto: bf16 where the device has it, fp16 on older CUDA, fp32 elsewhere; unset: as in the run."""
    json: str | None = None
    """Write the result as JSON to this file; - is standard output, with nothing else on it."""


@dataclass(kw_only=True)
class CheckOptions:
    """Options"""

    task: Literal["fgvc", "reid"] = "fgvc"
    """fgvc is fine-grained visual categorisation, reid is object re-identification."""
    dataset: str | None = None
    """Name of the data set, as of dcal train; unset: the built-in toy set."""
    data_root: str | None = None
    """The data set's own folder, or the folder that holds it; unset: looked for in $DCAL_DATA and ./data."""
    num_workers: int | None = None
    """Processes that read pictures; unset: one per core."""
    json: str | None = None
    """Write the whole report as JSON to this file; - is standard output, with nothing else on it."""


@dataclass(kw_only=True)
class ShardOptions:
    """Options"""

    task: Literal["fgvc", "reid"] = "fgvc"
    """fgvc is fine-grained visual categorisation, reid is object re-identification."""
    dataset: str | None = None
    """Name of the data set, as of dcal train; unset: the built-in toy set."""
    data_root: str | None = None
    """The data set's own folder, or the folder that holds it; unset: looked for in $DCAL_DATA and ./data."""
    output_dir: str | None = None
    """Folder for the archives; needed. The same command writes them again, as after an interruption."""
    shard_mb: int = 256
    """Largest size of an archive, in millions of bytes."""
    seed: int = 0
    """Of the random order of the training pictures; of re-identification, they come identity by identity."""
    num_workers: int | None = None
    """Processes that read and decode pictures; unset: one per core."""
    max_bad_images: int | None = None
    """Pictures that cannot be read are named and left out, so many at most; unset: 1 % of them, at least 10."""


def _train(arguments: list[str]) -> None:
    if _asks_for_help(arguments):
        print(describe_config(arguments))
        return
    console = make_console(patient=True)
    _show_log(console)
    config = parse_config(arguments)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries fill the screen; what comes of them is told below
    with ending_at_once():
        from dual_cross_attention.training.run import train  # late: help and mistyped flags need not wait for torch

    try:
        train(config, console)
    finally:
        _flush_or_forget(sys.stdout)


def _flush_or_forget(stream: TextIO) -> None:
    """What a log on a full disk, or a reader that has left, does not take: Python would complain at exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _evaluate(arguments: list[str]) -> None:
    if _asks_for_help(arguments):
        print(
            describe(
                EvalOptions,
                "dcal eval RUN_OR_MODEL [--OPTION VALUE ...]",
                "Accuracy (top-1, top-5) or retrieval (mAP, rank-1, -5, -10) of SA, GLCA and both together on the test "
                "split, of a run's best model (give its folder) or of one .safetensors.",
            )
        )
        return
    words, flags = split_flags(arguments)
    more_words, values = read_flags(EvalOptions, flags)
    options, models = EvalOptions(**values), words + more_words
    if len(models) != 1:
        raise InputError(
            f"dcal eval: expected one run's folder or model file, got {', '.join(map(repr, models)) or 'none'}"
        )
    _check_writable("json", None if options.json == "-" else options.json)
    _check_writable("save_ranking", options.save_ranking)
    console = make_console(stderr=options.json == "-")
    _show_log(console)
    from dual_cross_attention.inference.evaluation import evaluate

    given = {name: value for name, value in asdict(options).items() if name != "json"}
    result = evaluate(models[0], **given, console=console)
    console.print(_table(result))
    if result["unreadable"]:
        console.print(f"{result['unreadable']} pictures could not be read and were left out")
    _write_json(result, options.json)


def _check_data(arguments: list[str]) -> int:
    if _asks_for_help(arguments):
        print(
            describe(
                CheckOptions,
                "dcal check-data [--OPTION VALUE ...]",
                "Reads the labels of a data set and decodes every picture of all splits; reports what is broken, tiny, "
                "very large, animated, constant or of few levels, and files that are in more than one split. Exit "
                "status 0: all can be read, 1: some cannot, 2: the data set cannot be used.",
            )
        )
        return 0
    words, flags = split_flags(arguments)
    more_words, values = read_flags(CheckOptions, flags)
    if words + more_words:
        raise InputError(f"dcal check-data: unexpected word '{(words + more_words)[0]}': expected flags with a value")
    options = CheckOptions(**values)
    _check_writable("json", None if options.json == "-" else options.json)
    console = make_console(stderr=options.json == "-")
    _show_log(console)
    from dual_cross_attention.tasks import data_check as checking

    report = checking.check_data(options.task, options.dataset, options.data_root, options.num_workers, console)
    for line in checking.as_lines(report, SHOWN_BAD):
        console.print(printable(line), soft_wrap=True)
    _write_json(report.as_json(), options.json)
    return 1 if report.bad else 0


def _shard(arguments: list[str]) -> None:
    if _asks_for_help(arguments):
        print(
            describe(
                ShardOptions,
                "dcal shard --output_dir DIR [--OPTION VALUE ...]",
                "Writes a data set into plain tar archives by WebDataset's convention, for --dataset shards: the "
                "files' own bytes, with KEY.cls (class) or KEY.json (identity, camera) beside KEY.jpg; train-*.tar and "
                "val-*.tar or query-*.tar and gallery-*.tar. The same data set gives the same archives. (Who writes "
                "such archives otherwise should put pictures of classes in random order: a training shuffles 65,536 "
                "of them at a time.)",
            )
        )
        return
    words, flags = split_flags(arguments)
    more_words, values = read_flags(ShardOptions, flags)
    if words + more_words:
        raise InputError(f"dcal shard: unexpected word '{(words + more_words)[0]}': expected flags with a value")
    options = ShardOptions(**values)
    if not options.output_dir:
        raise InputError("dcal shard: expected --output_dir, a folder for the archives")
    console = make_console()
    _show_log(console)
    from dual_cross_attention.tasks import sharding

    for line in sharding.shard(**asdict(options), console=console):
        console.print(printable(line), soft_wrap=True)


def _check_writable(name: str, file: str | None) -> None:
    """Before any work is done: raises InputError if --name is no file that can be written; None is none at all."""
    if file is None:
        return
    if not Path(file).parent.is_dir():
        raise InputError(f"--{name}: there is no folder '{Path(file).parent}' to write '{file}' in")
    if file == "-" or Path(file).is_dir():
        raise InputError(f"--{name}: expected a file to write, got '{file}'")


def _write_json(result: dict[str, Any], file: str | None) -> None:
    """To a file, or to standard output if it is "-"."""
    text = json.dumps({"format_version": FORMAT_VERSION} | result, indent=2)
    if file == "-":
        print(text)
    elif file:
        try:
            Path(file).write_text(text + "\n")
        except OSError as error:
            raise InputError(f"--json: cannot write '{file}': {error.strerror}") from error


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return "-h" in arguments or "--help" in arguments


def _table(result: dict[str, Any]) -> Table:
    queries = f", {result['valid_queries']:,} queries with a match" if "valid_queries" in result else ""
    reranked = ", re-ranked" if result.get("rerank") else ""
    table = Table(title=f"{result['dataset']}, {result['images']:,} test pictures{queries}{reranked}")
    metrics = [name for name in METRICS if name in result]
    table.add_column("branch")
    for name in metrics:
        table.add_column(METRICS[name], justify="right")
    branches = {"SA": "_sa", "GLCA": "_glca", "SA + GLCA": ""}
    for branch, suffix in branches.items():
        if f"{metrics[0]}{suffix}" in result and (suffix or f"{metrics[0]}_glca" in result):
            table.add_row(branch, *(f"{result[f'{name}{suffix}']:.2f}" for name in metrics))
    return table


def _show_log(console: Console) -> None:
    """What the package logs, such as where weights come from, is shown as it is."""

    class Show(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            is_warning = record.levelno >= logging.WARNING
            start, style = ("warning: ", "yellow") if is_warning else ("", None)
            console.print(f"{start}{self.format(record)}", style=style, soft_wrap=True, markup=False)

    logger = logging.getLogger("dual_cross_attention")
    logger.setLevel("INFO")
    logger.handlers = [Show()]


def _fail(error: Exception | str, status: int) -> int:
    message = str(error)
    if "Original Traceback" in message:  # raised in a data worker: what matters is at the end
        message = message.strip().splitlines()[-1].partition(": ")[2]
    print("dcal: error:", printable(" ".join(message.split())), file=sys.stderr)
    return status
