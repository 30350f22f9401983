"""`dcal eval`: a trained model on a test split."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table

from dual_cross_attention.commands.output import asks_for_help, check_writable, show_log, write_json
from dual_cross_attention.configs.flags import describe, read_flags, split_flags
from dual_cross_attention.errors import InputError
from dual_cross_attention.progress import make_console

SUMMARY = "evaluate a trained model on the test split"
METRICS = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "mAP": "mAP %",
    "rank1": "rank-1 %",
    "rank5": "rank-5 %",
    "rank10": "rank-10 %",
}


@dataclass(kw_only=True)
class EvalOptions:
    """Options"""

    dataset: str | None = None
    """Another dataset of the same task; unset: that of the run."""
    data_root: str | None = None
    """The dataset; unset: where the run found it. A classifier needs only its test images."""
    split: Literal["val", "test"] | None = None
    """Classification, of datasets folder and shards: the images to test on; unset: val if it exists, else test."""
    unknown_classes: Literal["refuse", "leave_out"] = "refuse"
    """Classification, of dataset folder: test images of classes that the model does not know end the command with
    their names, or are left out, with a warning."""
    output: str | None = None
    """Classification: write one row per image to this file, .csv, .json, .jsonl or .parquet (needs pyarrow). Columns:
    path, label, prediction, correct, probability (of the prediction), label_probability (of the true class); the same
    of each branch, prediction_sa, probability_sa, label_probability_sa, and with _glca; error (why an image could not
    be read; then only path and label are filled)."""
    feature: Literal["before_neck", "after_neck"] | None = None
    """Re-identification: retrieve with features before or after the BN neck; unset: as in the run."""
    distance: Literal["euclidean", "cosine"] | None = None
    """Re-identification: distance between features; unset: as in the run."""
    normalize_features: bool | None = None
    """Re-identification: scale features to length 1 first; unset: as in the run."""
    rerank: bool = False
    """Re-identification: re-rank by k-reciprocal neighbors (Zhong et al. 2017)."""
    save_ranking: str | None = None
    """Re-identification: write for each query the gallery files in order, with distances, to this file (JSON Lines)."""
    ranking_depth: int | None = None
    """Of save_ranking: the nearest so many files of each query; unset: all, which takes 3 GB for Market-1501."""
    batch_size: int | None = None
    """Images of one forward pass; unset: as in the run."""
    num_workers: int | None = None
    """Processes that read images; unset: as in the run."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA, else MPS, else CPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """auto: bf16 where the device has it, fp16 on older CUDA, fp32 elsewhere; unset: as in the run."""
    json: str | None = None
    """Write the result as JSON to this file; - is standard output, with nothing else on it."""


def describe_options() -> str:
    """The text of --help."""
    return describe(
        EvalOptions,
        "dcal eval RUN_OR_MODEL [--OPTION VALUE ...]",
        "Accuracy (top-1, top-5) or retrieval (mAP, rank-1, -5, -10) of SA, GLCA and both together on the test "
        "split, of a run's best model (give its folder) or of one .safetensors.",
    )


def run(arguments: list[str]) -> None:
    if asks_for_help(arguments):
        print(describe_options())
        return
    words, flags = split_flags(arguments)
    more_words, values = read_flags(EvalOptions, flags)
    options, models = EvalOptions(**values), words + more_words
    if len(models) != 1:
        raise InputError(
            f"dcal eval: expected one run's folder or model file, got {', '.join(map(repr, models)) or 'none'}"
        )
    check_writable("json", None if options.json == "-" else options.json)
    check_writable("save_ranking", options.save_ranking)
    check_writable("output", options.output)
    console = make_console(stderr=options.json == "-")
    show_log(console)
    from dual_cross_attention.inference.evaluation import evaluate

    given = {name: value for name, value in asdict(options).items() if name != "json"}
    result = evaluate(models[0], **given, console=console)
    console.print(_table(result))
    if result["unreadable"]:
        console.print(f"{result['unreadable']} images could not be read and were left out")
    write_json(result, options.json)


def _table(result: dict[str, Any]) -> Table:
    queries = f", {result['valid_queries']:,} queries with a match" if "valid_queries" in result else ""
    reranked = ", re-ranked" if result.get("rerank") else ""
    table = Table(title=f"{result['dataset']}, {result['images']:,} test images{queries}{reranked}")
    metrics = [name for name in METRICS if name in result]
    table.add_column("branch")
    for name in metrics:
        table.add_column(METRICS[name], justify="right")
    branches = {"SA": "_sa", "GLCA": "_glca", "SA + GLCA": ""}
    for branch, suffix in branches.items():
        if f"{metrics[0]}{suffix}" in result and (suffix or f"{metrics[0]}_glca" in result):
            table.add_row(branch, *(f"{result[f'{name}{suffix}']:.2f}" for name in metrics))
    return table
