"""The README.md of a published model: data, recipe, measured numbers, and the license of the starting weights."""

import json

from timm.models import get_pretrained_cfg, is_model

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.data.preprocessing import Preprocessing
from dual_cross_attention.inference.calibration_lines import HEADING, calibration_lines
from dual_cross_attention.inference.calibrations import AnyCalibration
from dual_cross_attention.text import escape

METRICS = {
    "val/top1": "top-1 accuracy, %",
    "val/top5": "top-5 accuracy, %",
    "val/mAP": "mAP, %",
    "val/rank1": "rank-1, %",
    "val/rank5": "rank-5, %",
    "val/rank10": "rank-10, %",
}
BRANCHES = {"": "as used", "_sa": "SA alone", "_glca": "GLCA alone"}
RECIPE = (
    "backbone",
    "backbone_kwargs",
    "ablation",
    "local_ratio",
    "epochs",
    "batch_size",
    "gradient_accumulation_steps",
    "optimizer",
    "lr",
    "lr_per_512",
    "weight_decay",
    "drop_path_rate",
    "label_smoothing",
    "precision",
    "seed",
)
USAGE = {
    "fgvc": """for prediction in model.predict(["a.jpg", "b.png"], top_k=5):
    print(prediction.label, prediction.probability, prediction.top)""",
    "reid": """features = model.embed(["a.jpg", "b.png"])  # (2, D) float32""",
}
PIPELINES = {"fgvc": "image-classification", "reid": "image-feature-extraction"}


def model_card(
    config: TrainingConfig,
    labels: list[str],
    metrics: dict[str, float],
    data: DataFingerprint | None,
    preprocessing: Preprocessing,
    chosen_by: str | None,
    calibration: AnyCalibration | None = None,
) -> str:
    """Markdown with the front matter that the Hugging Face hub reads. Arguments as of `save_model`."""
    license_, license_line = starting_license(config)
    front = {
        "library_name": "dual-cross-attention",
        "pipeline_tag": PIPELINES[config.task],
        "tags": ["dual-cross-attention", config.task],
        **({"license": license_} if license_ else {}),
    }
    what = "Fine-grained classifier" if config.task == "fgvc" else "Re-identification model"
    return "\n".join(
        [
            "---",
            *(f"{name}: {json.dumps(value)}" for name, value in front.items()),
            "---",
            "",
            f"# {what}: {_text(config.backbone)} on {_text(config.dataset)}",
            "",
            "Dual Cross-Attention Learning (DCAL, [arXiv 2205.02151](https://arxiv.org/abs/2205.02151)), "
            f"branches in training: `{config.ablation}`.",
            "",
            "```python",
            "from dual_cross_attention import load_model",
            "",
            'model = load_model("PATH_OF_THIS_DIRECTORY")',
            USAGE[config.task],
            "```",
            "",
            "## Data",
            "",
            *_data_lines(config, labels, data),
            "",
            "## Measured",
            "",
            *_metric_lines(config, metrics, chosen_by),
            "",
            HEADING,
            "",
            *calibration_lines(calibration),
            "",
            "## Recipe",
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {name} | `{_text(getattr(config, name))}` |" for name in RECIPE if hasattr(config, name)),
            "",
            f"Images are resized to {preprocessing.resize[0]}×{preprocessing.resize[1]} (height×width, "
            f"{preprocessing.interpolation}), center-cropped to {preprocessing.img_size[0]}×{preprocessing.img_size[1]}"
            f", and normalized by mean {list(preprocessing.mean)} and std {list(preprocessing.std)}. "
            + ("They are cropped to the aspect ratio of that size first. " if preprocessing.keep_aspect else "")
            + "All settings are in `config.json`.",
            "",
            "## License",
            "",
            license_line,
            "The terms of the training data may restrict the use of the model, too.",
            "",
        ]
    )


def starting_license(config: TrainingConfig) -> tuple[str | None, str]:
    """Returns the license of the initial weights, if known, and a sentence about it."""
    if config.weights == "none":
        return None, "The training started from random weights: no other license applies to them."
    if config.weights != "imagenet":
        return None, (
            f"The training started from the weights file `{_text(config.weights)}`, whose license is not recorded: "
            "name it here before you publish the model."
        )
    cfg = get_pretrained_cfg(config.backbone) if is_model(config.backbone) else None
    if cfg is None or not cfg.license:
        return None, (
            f"The training started from timm's `{_text(config.backbone)}`, for which timm records no license: name it "
            "here before you publish the model."
        )
    where = f" ([{cfg.hf_hub_id}](https://huggingface.co/{cfg.hf_hub_id}))" if cfg.hf_hub_id else ""
    return cfg.license, (
        f"The training started from timm's `{_text(config.backbone)}`{where}, whose license is `{cfg.license}`."
    )


def _data_lines(config: TrainingConfig, labels: list[str], data: DataFingerprint | None) -> list[str]:
    kind = "classes" if config.task == "fgvc" else "training identities"
    lines = [f"- dataset: `{_text(data.dataset if data else config.dataset)}`, {len(labels):,} {kind}"]
    if data is None:
        return [*lines, "- the file does not record which images it was trained on"]
    lines += [
        f"- {_text(name)}: {split.images:,} images, fingerprint `{_text(split.digest)}`"
        for name, split in data.splits.items()
    ]
    return lines


def _metric_lines(config: TrainingConfig, metrics: dict[str, float], chosen_by: str | None) -> list[str]:
    has_glca = any(f"{metric}_glca" in metrics for metric in METRICS)  # else "as used" is SA alone
    columns = {
        suffix: name
        for suffix, name in BRANCHES.items()
        if (has_glca or not suffix) and any(f"{metric}{suffix}" in metrics for metric in METRICS)
    }
    if not columns:
        return ["The file holds no measured numbers."]
    lines = [
        f"On the test split of `{_text(config.dataset)}`, at epoch {metrics.get('epoch', '?')} of {config.epochs}:",
        "",
        f"| | {' | '.join(columns.values())} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name, title in METRICS.items():
        values = [metrics.get(f"{name}{suffix}") for suffix in columns]
        if any(value is not None for value in values):
            lines.append(f"| {title} | {' | '.join('' if value is None else f'{value:.2f}' for value in values)} |")
    chosen = (
        f"The epoch was chosen as: {_text(chosen_by)}."
        if chosen_by
        else "The file does not say how the epoch was chosen."
    )
    return [
        *lines,
        "",
        f"{chosen} The best model of a run is chosen by its score on the test split, so its numbers are optimistic; "
        "those of the last epoch are not chosen.",
    ]


def _text(value: object) -> str:
    """Escapes text for a table cell or backticks, on one line."""
    return escape(value).replace("`", "'").replace("|", "\\|")
