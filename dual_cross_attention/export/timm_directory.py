"""SA of a classifier as a plain timm model directory, for `timm.create_model("local-dir:DIR", pretrained=True)`."""

import json
from pathlib import Path

from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.model_card import starting_license
from dual_cross_attention.inference.model_files import PRETRAINED_NAME, SavedModel
from dual_cross_attention.inference.pretrained_directory import without_paths


def write_timm_directory(saved: SavedModel, directory: Path) -> list[str]:
    """Writes model.safetensors, the weights of SA bit by bit, and timm's config.json with the names of the classes.

    timm resizes the shorter side and keeps the aspect ratio, while this project resizes to a fixed size: the logits of
    equal pixels are equal, those of equal files may differ.

    Returns:
        Lines to print: the preprocessing, and the license of the initial weights.

    Raises:
        InputError: a re-identification model, whose neck timm does not have, or a directory that cannot be written.
    """
    if saved.config.task != "fgvc":
        raise InputError("--format timm is for classifiers: timm has no BN neck; take --format onnx")
    backbone, preprocessing = saved.model.backbone, saved.preprocessing
    license_, license_line = starting_license(without_paths(saved.config))
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
    try:
        directory.mkdir(exist_ok=True)
        save_config_for_hf(backbone, str(directory / "config.json"), described, arguments, pixels)
        state = {name: value.contiguous() for name, value in backbone.state_dict().items()}
        with atomic_write(directory / PRETRAINED_NAME) as temporary:
            save_file(state, temporary, {"format": "pt"})
        with atomic_write(directory / "preprocessing.json") as temporary:
            temporary.write_text(json.dumps(json.loads(preprocessing.to_json()), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write '{directory}': {error.strerror or error}") from error
    return [
        f"SA alone; it was tested on images resized to {preprocessing.resize[0]}x{preprocessing.resize[1]} (height x "
        "width) without keeping the aspect ratio, which timm's transform keeps: see preprocessing.json",
        license_line,
    ]
