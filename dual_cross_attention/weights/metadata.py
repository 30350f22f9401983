"""Metadata of a weights file, or of a config next to it: image size and normalization in training."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg

from dual_cross_attention.configs.versions import check_header_version, check_version
from dual_cross_attention.configs.yaml_files import read_yaml
from dual_cross_attention.text import escape
from dual_cross_attention.weights.pixel_stats import PixelStats, default_stats, read_stats

MAX_CONFIG_BYTES = 100_000
PREPROCESSOR = "preprocessor_config.json"
"""Of a config.json next to a weights file; timm's have 1,000."""


@dataclass(frozen=True)
class Metadata:
    """What is known of a weights file beside its tensors.

    Args:
        img_size: (height, width) in pixels, None where nothing says.
        is_exact: whether `img_size` is that of the file itself: a position embedding of another number of tokens is an
            error.
        stats: normalization of the pixels, None where nothing says.
        is_run: whether a run of this project wrote the file.
        model: the flags of the run's backbone.
        num_heads: of the run's backbone; shapes do not tell.
    """

    img_size: tuple[int, int] | None = None
    is_exact: bool = False
    stats: PixelStats | None = None
    is_run: bool = False
    model: str | None = None
    num_heads: int | None = None


def read_metadata(path: Path, header: Mapping[str, str], tree: Any = None) -> Metadata:
    """Metadata of a weights file: its own header, the config.yaml of its run, the arguments of timm's training script,
    or a timm `config.json`, or Hugging Face's `preprocessor_config.json`, next to it.

    Args:
        header: the metadata of a `.safetensors`.
        tree: the content of the file, where timm's script keeps its arguments as "args".

    Raises:
        InputError: a mean or std in it that cannot be one, or settings of a later format version.
    """
    try:
        settings = json.loads(header["config"])
    except (KeyError, ValueError, RecursionError):
        settings = None
    if isinstance(settings, dict) and {"task", "backbone", "img_size"} <= settings.keys():
        check_header_version(header, f"the header of '{path}'")
        return _of_run(settings, f"the header of '{path}'")
    if path.name == "state.pt":  # in RUN/checkpoints/epoch_NNNN or RUN/diverged
        for folder in path.resolve().parents[1:3]:
            if (run_config := folder / "config.yaml").is_file():
                return _of_run(read_yaml(run_config), f"'{run_config}'")
    arguments = tree.get("args") if isinstance(tree, dict) else None
    if isinstance(arguments, argparse.Namespace):
        given = vars(arguments)
        size = _size(given.get("img_size")) or _size(given.get("input_size"))
        has_stats = isinstance(given.get("mean"), list | tuple) and isinstance(given.get("std"), list | tuple)
        stats = read_stats(given["mean"], given["std"], f"the arguments in '{path}'") if has_stats else None
        if size or stats:
            return Metadata(size, False, stats)
    of_timm = _of_timm(path.with_name("config.json"))
    return of_timm if of_timm.stats else replace(of_timm, stats=_of_preprocessor(path.with_name(PREPROCESSOR)))


def _of_run(settings: Mapping[str, Any], source: str) -> Metadata:
    """From the settings of a run; those of format 1 say how pixels were normalized by task and backbone only."""
    check_version(settings.get("format_version"), source)
    size = settings.get("img_size")
    is_size = isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
    name, stats = settings.get("backbone"), None
    is_known = isinstance(name, str) and timm.is_model(name)
    of_task = settings.get("pixel_stats", "half") if settings.get("task") == "reid" else None
    if isinstance(settings.get("mean"), list):
        stats = read_stats(settings["mean"], settings.get("std"), source)
    elif of_task == "half" or is_known:
        cfg = get_pretrained_cfg(name).to_dict() if is_known else {}
        stats = default_stats(of_task, cfg, str(name))._replace(source=source)
    more = settings.get("backbone_kwargs")
    model = f"--backbone {escape(name):.60}"
    if more:
        model += f" --backbone_kwargs '{escape(json.dumps(more)):.100}'"
    heads = more.get("num_heads") if isinstance(more, dict) else None
    if isinstance(heads, list):  # of stages
        heads = heads[0] if heads else None
    return Metadata(tuple(size) if is_size else None, True, stats, True, model, heads or _heads_of(name))


def _heads_of(name: Any) -> int | None:
    """Attention heads of a backbone, by its name in timm; None: another model, whose tensors will not fit anyway."""
    if not isinstance(name, str) or not timm.is_model(name):
        return None
    try:
        with torch.device("meta"):
            return timm.create_model(name, depth=1).blocks[0].attn.num_heads
    except Exception:  # a model without a depth, or blocks: each family raises something else
        return None


def _read_json(path: Path) -> dict[str, Any]:
    """An object of JSON; empty if there is none, or something else."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        content = json.loads(raw) if len(raw) <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError):
        content = None
    return content if isinstance(content, dict) else {}


def _of_preprocessor(path: Path) -> PixelStats | None:
    """From Hugging Face's `preprocessor_config.json`: {"image_mean": …, "image_std": …}."""
    content = _read_json(path)
    if not content.get("do_normalize", True) or content.get("image_mean") is None:
        return None
    return read_stats(content["image_mean"], content.get("image_std"), f"'{path}'")


def _of_timm(path: Path) -> Metadata:
    """From a timm `config.json`: {"architecture": …, "pretrained_cfg": {"mean": …, "std": …, "input_size": …}}."""
    content = _read_json(path)
    cfg = content.get("pretrained_cfg")
    if not isinstance(cfg, dict):
        return Metadata()
    stats = read_stats(cfg["mean"], cfg.get("std"), f"'{path}'") if cfg.get("mean") is not None else None
    arguments = content.get("model_args")
    size = arguments.get("img_size") if isinstance(arguments, dict) else None
    return Metadata(_size(size) or _size(cfg.get("input_size")), False, stats)


def _size(value: Any) -> tuple[int, int] | None:
    """`224`, `[height, width]` or `[3, height, width]` → (height, width); anything else is None."""
    sides = [value, value] if isinstance(value, int) else value[-2:] if isinstance(value, list) else []
    return tuple(sides) if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides) else None
