"""Loads pretrained weights into a backbone, by path or name; choices are logged."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, short_repr
from dual_cross_attention.weights import npz
from dual_cross_attention.weights.archives import check_archive
from dual_cross_attention.weights.candidates import Candidate, list_candidates, select
from dual_cross_attention.weights.files import check_tensors, find_weights, read_content
from dual_cross_attention.weights.fitting import HEADS, Fit, blocks_of, check_finite, fit
from dual_cross_attention.weights.metadata import Metadata, read_metadata
from dual_cross_attention.weights.pixel_stats import PixelStats
from dual_cross_attention.weights.positions import SourceGrid, resample_positions
from dual_cross_attention.weights.reasons import refusal, shortened

logger = logging.getLogger(__name__)

GLCA = ("glca_block.", "more_glca_blocks.", "glca_norm.", "glca_pool.")
"""Prefixes in a model of this project, next to `backbone.`, of the tensors that another run starts from."""
OWN = (*GLCA, "sa_head.", "glca_head.")


@dataclass(frozen=True)
class Loaded:
    """What a weights file holds in addition to the backbone.

    Args:
        path: the file.
        stats: normalization that the file, or a config next to it, names; None: neither does.
        is_run: whether a run of this project wrote it.
        glca: tensors of GLCA's block and norm by their names in `DualCrossAttentionViT`, where the file has them.
    """

    path: Path
    stats: PixelStats | None = None
    is_run: bool = False
    glca: dict[str, Tensor] = field(default_factory=dict)


def fetch_imagenet_weights(backbone: Any, name: str) -> None:
    """Loads timm's published weights for `name`, downloaded once and cached.

    Raises:
        InputError: timm has none, or they cannot be fetched from here.
    """
    if not timm.is_model_pretrained(name):
        raise InputError(f"timm has no published weights for '{name}': use --weights none, or a path to a file")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # all hub and network failures get the same message
        raise InputError(
            f"timm could not fetch the weights of '{name}' ({_first_line(error)}): check the network, or "
            "give a file with --weights PATH (.safetensors, .pth, .npz), or train from scratch with --weights none"
        ) from error
    source, state = f"timm's {name}", model.state_dict()
    given = fit(state, backbone)
    if not given.is_complete:
        raise InputError(refusal(source, given, state, backbone))
    size = tuple(model.patch_embed.img_size)
    _fill(backbone, given, SourceGrid(size, given.patch, source), source, source)


def load_weights(
    backbone: Any,
    path: str | Path,
    key: str | None = None,
    img_size: tuple[int, int] | None = None,
) -> Loaded:
    """Loads a file's weights into the backbone; position and patch embeddings are resampled to its size.

    Args:
        path: `.safetensors`; `.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar` (read with `weights_only=True`: nothing in it
            is executed); Google's `.npz` (as `ViT-B_16.npz`); or the folder of a run of this project. Nested dicts and
            prefixes of names are searched for the backbone, and of two that fit, EMA weights are preferred; a log line
            says what was taken. A head of another width is left out, and a log line says so.
        key: the nested dict or prefix to take, such as "teacher" or "state_dict.ema_model"; None: the one that fits.
        img_size: (height, width) in pixels that the file was trained at; None: what the file says, else a square.

    Raises:
        InputError: no such file, not readable, NaN or infinite values, a position embedding whose grid cannot be known,
            or any other key or shape that does not fit.
    """
    path = find_weights(path)
    try:
        chosen, given, metadata = _choose(backbone, path, key)
    except InputError:
        raise
    except Exception as error:  # readers raise any type on damaged or hostile bytes
        raise InputError(f"cannot read weights '{path}': {_first_line(error)}") from error
    if not given.is_complete:
        raise InputError(refusal(str(path), given, [*chosen.state, *chosen.outside], backbone, metadata.model))

    heads = blocks_of(backbone)[0].attn.num_heads
    if metadata.num_heads not in (None, heads):  # the shapes are alike, the attention is not
        raise InputError(
            f"weights from {path} do not fit the backbone: {metadata.num_heads} attention heads for {heads}; the file "
            f"is of a run with {metadata.model}"
        )
    if img_size and metadata.is_exact and metadata.img_size not in (None, tuple(img_size)):
        height, width = metadata.img_size
        raise InputError(
            f"--weights_img_size {img_size[0]} {img_size[1]}: the run that wrote '{path}' was trained at {height} "
            f"{width}, which its header says: leave the flag out"
        )
    is_npz = path.name.lower().endswith(".npz")
    grid = SourceGrid(
        img_size or metadata.img_size,
        given.patch,
        "--weights_img_size" if img_size else "the run that wrote the file" if metadata.is_exact else None,
        *(("bilinear", False) if is_npz else ()),  # as timm reads it
    )
    glca = {name: value for name, value in _tensors_of_own_model(chosen).items() if name.startswith(GLCA)}
    check_finite(glca, str(path))
    _fill(backbone, given, grid, _describe(chosen, path), str(path))
    is_run = metadata.is_run or any(name.startswith(OWN) for name in _tensors_of_own_model(chosen))
    return Loaded(path, metadata.stats or (npz.STATS if is_npz else None), is_run, glca)


def load_glca(model: nn.Module, loaded: Loaded, glca_init: str) -> None:
    """GLCA's block and norm out of a model of this project, where it and `model` have them; a log line says which.

    Raises:
        InputError: they are of another shape.
    """
    if not loaded.is_run:
        return
    wanted = {name: value for name, value in model.state_dict().items() if name.startswith(GLCA)}
    if not wanted or not loaded.glca:
        without = f"GLCA, which the file does not have, starts by glca_init {glca_init}; " if wanted else ""
        logger.info("weights: the backbone is taken; %sheads, necks and loss weights are initialized", without)
        return
    shapes, found = ({name: tuple(value.shape) for name, value in each.items()} for each in (wanted, loaded.glca))
    if odd := sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)):
        raise InputError(
            f"weights from {loaded.path}: GLCA does not fit: {escape(odd[0]):.80} has the shape "
            f"{found.get(odd[0])}, expected {shapes.get(odd[0])}"
        )
    model.load_state_dict(loaded.glca, strict=False)
    logger.info("weights: backbone, GLCA's block and norm are taken; heads, necks and loss weights are initialized")


def _choose(backbone: Any, path: Path, key: str | None) -> tuple[Candidate, Fit, Metadata]:
    """Returns the part of a file that fits best."""
    if path.name.lower().endswith(".npz"):
        if key is not None:
            raise InputError(f"--weights_key {short_repr(key)}: an .npz holds one model, '{path}' too")
        check_archive(path)
        state, patch = npz.read_npz(path, backbone)
        return Candidate("", "", state, {}), fit(state, backbone, patch=patch), read_metadata(path, {})
    content = read_content(path)
    candidates = list_candidates(content.tree)
    if not candidates:
        raise InputError(
            f"weights from {path}: expected a state dict of tensors, got {short_repr(content.tree)}"
            if not isinstance(content.tree, dict)
            else f"weights from {path}: expected a state dict of tensors, got something else"
        )
    if key is not None:
        named, names = select(candidates, key), [each.name for each in candidates if each.name]
        if not named:
            raise InputError(
                f"--weights_key {short_repr(key)}: '{path}' has "
                f"{', '.join(map(escape, names))[:200] or 'one dict only'}"
            )
        candidates = named
    metadata = read_metadata(path, content.header, content.tree)
    fits, failed = [], None
    for candidate in candidates:
        check_tensors(candidate.state | candidate.outside, str(path))
        is_run = metadata.is_run or any(name.startswith(OWN) for name in _tensors_of_own_model(candidate))
        try:
            fits.append((candidate, fit(candidate.state, backbone, with_head=not is_run)))
        except Exception as error:  # timm's conversion takes its own shapes for granted
            failed = error
    if not fits:
        raise InputError(f"weights from {path} do not fit the backbone: {_first_line(failed)}") from failed
    chosen, given = min(fits, key=lambda pair: _order(*pair))
    if given.is_complete:
        _say_choice(chosen, [(each, its) for each, its in fits if each is not chosen])
    return chosen, given, metadata


def _say_choice(chosen: Candidate, others: list[tuple[Candidate, Fit]]) -> None:
    """Logs other parts that fit, and EMA weights that do not."""
    alike = [each for each, its in others if its.is_complete and not _is_same(each, chosen)]
    if alike:
        logger.info(
            "weights: %s: '%s' is taken, not %s; --weights_key takes another",
            "EMA weights are preferred" if chosen.is_ema else "several parts of the file fit",
            escape(chosen.name) or "the top of the file",
            ", ".join(f"'{escape(each.name)}'" if each.name else "the top of the file" for each in alike[:4]),
        )
    elif left := [each for each, _ in others if each.is_ema and not chosen.is_ema]:
        logger.warning("weights: the EMA weights in '%s' do not fit, others are taken", escape(left[0].name))


def _is_same(one: Candidate, other: Candidate) -> bool:
    """Whether two are views of the same tensors: timm reads some layouts under a prefix, too."""
    is_inside = one.prefix.startswith(other.prefix) or other.prefix.startswith(one.prefix)
    return one.key == other.key and is_inside


def _tensors_of_own_model(candidate: Candidate) -> dict[str, Tensor]:
    """Tensors of a model of this project other than its backbone's, by the model's names; of other files, none."""
    outer = candidate.prefix.removesuffix("backbone.")
    if outer == candidate.prefix:
        return {}
    return {name.removeprefix(outer): value for name, value in candidate.outside.items() if name.startswith(outer)}


def _fill(backbone: Any, given: Fit, grid: SourceGrid, description: str, source: str) -> None:
    """The tensors of a complete fit into the backbone, the position embedding resampled."""
    state, expected = given.state, backbone.state_dict()
    positions = None
    if "pos_embed" in state and not given.has_positions_of_target:
        prefix = expected["pos_embed"].shape[1] - backbone.patch_embed.num_patches
        try:
            positions = resample_positions(state["pos_embed"], grid, backbone.patch_embed.grid_size, prefix)
        except InputError as error:
            raise InputError(f"weights from {shortened(source)}: {error}") from error
        state = state | {"pos_embed": positions.embedding}
    size = tuple(backbone.patch_embed.img_size)
    if given.has_rectangles and grid.img_size != size:  # their shape does not tell h × w from w × h
        raise InputError(
            f"weights from {shortened(source)}: tables of relative positions are of windows that are no squares, as of "
            f"images that are none: expected a file trained at {size[0]}x{size[1]} (--weights_img_size says so, where "
            "the file does not)"
        )
    check_finite(state, source)
    state = {name: value.to(expected[name].dtype) for name, value in state.items()}
    check_finite(state, source)  # float64 beyond float32
    backbone.load_state_dict(state, strict=False)
    left_out = f"; left out, newly initialized: {', '.join(map(escape, given.left_out[:6]))}" if given.left_out else ""
    decoder = f"; left out: {given.decoder} tensors of a decoder" if given.decoder else ""
    logger.info("weights: %s%s%s", description, left_out, decoder)
    if given.windows:
        logger.info("weights: tables of relative positions are resized, windows %s", ", ".join(given.windows))
    if positions:
        logger.log(logging.WARNING if positions.is_guess else logging.INFO, "%s", positions.line)


def _describe(chosen: Candidate, path: Path) -> str:
    key = f", of '{escape(chosen.key)}'" if chosen.key else ""
    prefix = f", prefix '{escape(chosen.prefix)}' removed" if chosen.prefix else ""
    prefix += " (EMA weights)" if chosen.is_ema else ""
    outside = len(chosen.outside) - len(_tensors_of_own_model(chosen))
    return f"{path}{key}{prefix}{f', {outside} tensors without it passed over' if outside else ''}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.300}" if lines else type(error).__name__


def _order(candidate: Candidate, given: Fit) -> tuple:
    """Sorts the best first. A head that fits decides only between candidates that are equal otherwise and both EMA or
    both not: averaged weights that were saved without their head are still the better backbone."""
    wrong, heads = len(given.missing) + len(given.shapes), sum(name.startswith(HEADS) for name in given.fitting)
    of_backbone = len(given.fitting) - heads
    return (
        not given.is_complete,
        -of_backbone,
        wrong,
        len(given.unexpected),
        not candidate.is_ema,
        -heads,
        candidate.rank,
    )
