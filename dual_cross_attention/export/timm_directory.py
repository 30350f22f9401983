"""SA of a classifier as a plain timm model directory, for `timm.create_model("local-dir:DIR", pretrained=True)`."""

import json
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.models._hub import save_config_for_hf

from dual_cross_attention.data.images import ImageSource
from dual_cross_attention.errors import InputError
from dual_cross_attention.export.gate import in_batches
from dual_cross_attention.inference.model_card import starting_license
from dual_cross_attention.inference.model_files import PRETRAINED_NAME, SavedModel
from dual_cross_attention.inference.pretrained_directory import without_paths

MAX_LOGIT = 1e-5
"""|Δ logit| of equal pixels, relative to the image's largest logit where that is above 1."""


def write_timm_directory(saved: SavedModel, directory: Path, images: Sequence[ImageSource]) -> list[str]:
    """Writes model.safetensors, the weights of SA bit by bit, and timm's config.json with the names of the classes.

    The directory is loaded by timm and compared before it gets its name. timm resizes the shorter side and keeps the
    aspect ratio, while this project resizes to a fixed size: the logits of equal pixels are equal, those of equal files
    may differ.

    Args:
        saved: on CPU, in evaluation mode.
        directory: a new or an empty one.
        images: that are compared.

    Returns:
        Lines to print: the comparison, the preprocessing, and the license of the initial weights.

    Raises:
        InputError: a re-identification model, whose neck timm does not have, a failed comparison, or a directory that
            cannot be written.
    """
    if saved.config.task != "fgvc":
        raise InputError("--format timm is for classifiers: timm has no BN neck; take --format onnx")
    written: Path | None = None
    try:
        written = Path(mkdtemp(prefix=f"{directory.name}.tmp-", dir=directory.absolute().parent))
        write_files(saved, written)
        largest = compare_timm(saved, written, images)
        written.chmod(0o755)  # of a temporary folder, only its owner may read it
        if directory.is_dir():
            directory.rmdir()
        written.replace(directory)
    except OSError as error:
        raise InputError(f"cannot write '{directory}': {error.strerror or error}") from error
    finally:
        if written is not None:
            rmtree(written, ignore_errors=True)
    height, width = saved.preprocessing.resize
    is_kept = saved.preprocessing.keep_aspect
    shape = "after a crop to that aspect ratio" if is_kept else "without keeping the aspect ratio"
    return [
        f"loaded by timm: weights and labels equal; |Δ logit| ≤ {largest:.1e} (limit {MAX_LOGIT:g}) on {len(images)} "
        "images",
        f"SA alone; it was tested on images resized to {height}x{width} (height x width) {shape}; timm's transform "
        "resizes the shorter side: see preprocessing.json",
        starting_license(without_paths(saved.config))[1],
    ]


def compare_timm(saved: SavedModel, directory: Path, images: Sequence[ImageSource]) -> float:
    """Loads a directory by timm and compares weights, labels, mean, std and logits with a model.

    Returns:
        The largest |Δ logit|, relative as of `MAX_LOGIT`.

    Raises:
        InputError: something differs.
    """
    model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    expected, found = saved.model.backbone.state_dict(), model.state_dict()
    config, data = model.pretrained_cfg, resolve_data_config(model=model)
    preprocessing = saved.preprocessing
    largest = 0.0
    with torch.no_grad():
        for batch in in_batches(images):
            pixels = torch.stack([preprocessing(image) for image in batch])
            wanted = saved.model.predict_logits(pixels, "sa")["sa"]
            scale = wanted.abs().amax(dim=1, keepdim=True).clamp_min(1)
            largest = max(largest, ((model(pixels) - wanted).abs() / scale).nan_to_num(torch.inf).max().item())
    checks = {
        "weights": expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in found),
        "labels": list(config.get("label_names") or []) == saved.classes,
        "mean and std": (tuple(data["mean"]), tuple(data["std"])) == (preprocessing.mean, preprocessing.std),
        f"logits, by {largest:.1e} (limit {MAX_LOGIT:g})": largest <= MAX_LOGIT,
    }
    if differing := [name for name, is_equal in checks.items() if not is_equal]:
        raise InputError(
            f"timm does not load what was trained, so no directory is written: {', '.join(differing)} differ"
        )
    return largest


def write_files(saved: SavedModel, directory: Path) -> None:
    """Writes weights, timm's config.json and preprocessing.json, without a comparison."""
    backbone, preprocessing = saved.model.backbone, saved.preprocessing
    license_, _ = starting_license(without_paths(saved.config))
    described = {
        "num_classes": len(saved.classes),
        "label_names": saved.classes,
        "pretrained_cfg": {"license": license_} if license_ else {},
    }
    pixels = {
        "input_size": (3, *preprocessing.img_size),
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.img_size[0] / preprocessing.resize[0],
        "crop_mode": "center",
    }
    arguments = {**saved.config.backbone_kwargs, "img_size": list(preprocessing.img_size)}
    save_config_for_hf(backbone, str(directory / "config.json"), described, arguments, pixels)
    state = {name: value.contiguous() for name, value in backbone.state_dict().items()}
    save_file(state, directory / PRETRAINED_NAME, {"format": "pt"})
    text = json.dumps(json.loads(preprocessing.to_json()), indent=2) + "\n"
    (directory / "preprocessing.json").write_text(text, encoding="utf-8")
