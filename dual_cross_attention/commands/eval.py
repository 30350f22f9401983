"""`dcal eval`: a trained model on a test split."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from rich.table import Table

from dual_cross_attention.commands.output import check_writable, open_console, write_json
from dual_cross_attention.configs.arguments import positional, read_options

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
    """Evaluates the best model of a run, or one model file, on the test split: accuracy (top-1, top-5) or retrieval
    (mAP, rank-1, -5, -10) of SA, of GLCA and of both combined."""

    EXAMPLE: ClassVar = "dcal eval runs/fgvc-toy-vit_tiny_patch16_224-full-seed0"
    GROUPS: ClassVar = {
        "data": "dataset data_root image_column label_column split unknown_classes",
        "retrieval (reid)": "feature distance normalize_features rerank cameras views",
        "output": "output json save_ranking ranking_depth",
        "hardware and speed": "device precision batch_size num_workers",
    }

    model: str = positional("RUN_OR_MODEL")
    """Run folder, whose best model is evaluated, a .safetensors model file, a directory of save_pretrained,
    hf:ORG/NAME[@REVISION] of the Hugging Face Hub, or an .onnx file of dcal export."""
    dataset: str | None = None
    """Another dataset of the same task. null: that of the run."""
    data_root: str | None = None
    """Folder of the dataset, or the folder that contains it; a classifier needs only its test images. null: where the
    run found it."""
    image_column: str | None = None
    """Classification, datasets csv and hf: column of the images or their paths. null: found by its name;
    without dataset, as in the run."""
    label_column: str | None = None
    """Classification, datasets csv and hf: column of the classes. null: as image_column."""
    split: Literal["val", "test"] | None = None
    """Classification: which images to evaluate on, where a dataset may have both. null: val if it exists, else
    test."""
    unknown_classes: Literal["refuse", "leave_out"] = "refuse"
    """Classification, datasets folder, lists and csv: refuse test images of classes that the model does not know, or
    leave them out with a warning."""
    output: str | None = None
    """Classification: write one row per image to this file, .csv, .json, .jsonl or .parquet. Columns: path, label,
    prediction, correct, probability (of the predicted class), label_probability (of the true class); the same for each
    branch, prediction_sa, probability_sa, label_probability_sa, and with _glca; coarse_label, coarse_prediction, if the
    dataset has coarse classes; error (why an image could not be read;
    then only path and label are filled)."""
    feature: Literal["before_neck", "after_neck"] | None = None
    """Features for retrieval: class tokens before or after the BN neck. null: as in the run."""
    distance: Literal["euclidean", "cosine"] | None = None
    """Distance between query and gallery features. null: as in the run."""
    normalize_features: bool | None = None
    """Scale features to an L2 norm of 1 before distances are computed. null: as in the run."""
    cameras: Literal["auto", "none", "name"] | None = None
    """Re-identification, dataset folder: name reads cameras from file names or the column camera of a CSV file; none:
    there are none, and a query ignores only its own file; auto: name if they are cameras. null: as in the run."""
    views: str | None = None
    """Re-identification, models with --sie view: a CSV file with the columns path and view for the test images, or
    none: all count as of unknown views. null: as in the run, and unknown on other data."""
    rerank: bool = False
    """Re-rank by k-reciprocal neighbors (Zhong et al. 2017)."""
    save_ranking: str | None = None
    """Write the gallery files of each query by distance, with the distances, to this file (JSON Lines)."""
    ranking_depth: int | None = None
    """Number of gallery files per query in save_ranking. null: all, which takes 3 GB for Market-1501."""
    batch_size: int | None = None
    """Images per forward pass. null: as in the run."""
    num_workers: int | None = None
    """Processes that read and decode images. null: as in the run."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA, else MPS, else CPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """auto: bf16 if the device multiplies it in hardware, fp16 on older CUDA devices, else fp32. null: as in the
    run."""
    json: str | None = None
    """Write the result as JSON to this file; - writes it to standard output, and nothing else."""


def run(arguments: list[str]) -> None:
    """Prints the metrics of each branch as a table."""
    options = read_options(EvalOptions, "eval", arguments)
    check_writable("save_ranking", options.save_ranking)
    check_writable("output", options.output)
    console = open_console(options.json)
    from dual_cross_attention.inference.evaluation import evaluate

    given = {name: value for name, value in asdict(options).items() if name not in ("model", "json")}
    result = evaluate(options.model, **given, console=console)
    console.print(_table(result))
    if "coarse_top1" in result:
        inside, across = result["mistakes_inside"], result["mistakes_across"]
        console.print(
            f"coarse classes: top-1 {result['coarse_top1']:.2f} %; of {inside + across:,} wrong images, {inside:,} are "
            f"predicted as another class of the same coarse class, and {across:,} as one of another"
        )
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
        if f"{metrics[0]}{suffix}" in result and (
            suffix or all(f"{metrics[0]}{each}" in result for each in ("_sa", "_glca"))
        ):
            table.add_row(branch, *(f"{result[f'{name}{suffix}']:.2f}" for name in metrics))
    return table
