"""Explanations of a stream of images, by a loaded model or any timm model whose attention is accessible."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from dual_cross_attention.data.preprocessing import Preprocessing
from dual_cross_attention.devices import autocast
from dual_cross_attention.errors import InputError
from dual_cross_attention.explanation.explanation import Explanation
from dual_cross_attention.explanation.gradient_rollout import gradient_rollout
from dual_cross_attention.explanation.maps import AttentionMaps, attention_maps, vote
from dual_cross_attention.explanation.shown_image import ShownPreprocessing, crop_share, pixels_of
from dual_cross_attention.inference.answers import NOT_FINITE, answer_logits
from dual_cross_attention.inference.calibration import TOGETHER
from dual_cross_attention.inference.inputs import image_sources
from dual_cross_attention.inference.loaded_model import BATCH_SIZE, LoadedModel
from dual_cross_attention.inference.prediction import Prediction
from dual_cross_attention.inference.reading import ImageBatch, read_batches
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT

Logits = dict[str, Tensor]


@dataclass
class Explainer:
    """What explains batches of images.

    Args:
        network: in evaluation mode.
        answer: from logits, (n, classes) by branch, and the branch that answers alone (None: all) to n predictions.
        preprocessing: of the images.
        device, precision: where and how it computes.
        name: of the model, in figures.
        is_calibrated: whether the answers are.
        gradient: compute gradient × rollout, too.

    Raises:
        InputError: gradient × rollout of a re-identification model.
    """

    network: DualCrossAttentionViT
    answer: Callable[[Logits, str | None], list[Prediction]]
    preprocessing: Preprocessing
    device: torch.device
    precision: str
    name: str = ""
    is_calibrated: bool = False
    gradient: bool = False

    @classmethod
    def of_loaded(cls, loaded: LoadedModel, top_k: int, gradient: bool) -> "Explainer":
        """Of a loaded model, with `top_k` classes of each prediction."""

        def answer(logits: Logits, branch: str | None) -> list[Prediction]:
            return loaded.answer(logits, min(top_k, len(loaded.labels)), branch)

        return cls(
            loaded.model,
            answer,
            loaded.transform,
            loaded.device,
            loaded.precision,
            loaded.short_name,
            loaded.calibration is not None,
            gradient,
        )

    def __post_init__(self):
        if self.gradient and self.network.has_necks:
            raise InputError("gradient: expected a classifier, got a re-identification model, which predicts no class")

    def explain(self, batches: Iterator[ImageBatch]) -> Iterator[Explanation]:
        """One `Explanation` an image, in order.

        Args:
            batches: read with `ShownPreprocessing`, whose pixels are kept, or with the preprocessing of the model.
        """
        for batch in batches:
            rows: Iterator[Explanation] = iter(())
            if batch.images is not None:
                # The pixels to show are a second tensor of the batch.
                images, shown = (batch.images, None) if isinstance(batch.images, Tensor) else batch.images
                rows = iter(self._explain(images.to(self.device, non_blocking=True), shown, batch))
            for path, error in zip(batch.paths, batch.errors, strict=True):
                yield Explanation(path, error=error) if error else next(rows)

    def _explain(self, images: Tensor, shown: Tensor | None, batch: ImageBatch) -> list[Explanation]:
        with autocast(self.device, self.precision):
            maps = attention_maps(self.network, images)
            gradient = (
                gradient_rollout(self.network, images, vote(maps.logits).argmax(dim=1)) if self.gradient else None
            )
        paths = [path for path, error in zip(batch.paths, batch.errors, strict=True) if not error]
        predictions = self._predictions(maps.logits, len(paths))
        arrays = {name: _numpy(getattr(maps, name)) for name in ("rollout", "layers", "local", "glca")}
        arrays["gradient"] = _numpy(gradient)
        crop = crop_share(self.preprocessing)
        is_finite = _is_finite(maps)
        return [
            Explanation(
                path,
                **{name: None if each is None else each[row] for name, each in arrays.items()},
                predictions={name: answers[row] for name, answers in predictions.items()},
                image=None if shown is None else shown[row].numpy(),
                local_queries=self.network.local_queries,
                crop=crop,
                keep_aspect=self.preprocessing.keep_aspect,
                is_calibrated=self.is_calibrated,
                model_name=self.name,
            )
            if is_finite[row]
            else Explanation(path, error=NOT_FINITE)
            for row, path in enumerate(paths)
        ]

    def _predictions(self, logits: Logits, number: int) -> dict[str, list[Prediction]]:
        """By answer, see `Explanation.predictions`."""
        if self.network.has_necks:
            return {}
        together = {TOGETHER: self.answer(logits, None)} if len(logits) > 1 else {}
        return together | {name: self.answer({name: each}, name) for name, each in logits.items()}


def explain(
    model: LoadedModel | nn.Module,
    images: Any,
    labels: Sequence[str] | None = None,
    top_k: int = 3,
    batch_size: int | None = None,
    num_workers: int = 0,
    gradient: bool = False,
) -> Explanation | Iterator[Explanation]:
    """What a model attends to in images.

    Args:
        model: of `load_model`; or a timm model that `list_backbones` has, or a `DualCrossAttentionViT`, in evaluation
            mode.
        images: as in `LoadedModel.explain`. For a model that is not loaded also float tensors, (3, H, W) or
            (B, 3, H, W), normalized as the model expects. Other images are resized to its input size without a crop,
            which changes their aspect ratio, and normalized with the mean and std of its `pretrained_cfg`.
        labels: class names of a model that is not loaded; None: "class 0", "class 1", ….
        top_k, batch_size, num_workers, gradient: as in `LoadedModel.explain`.

    Returns:
        One image gives one `Explanation`; an iterable gives an iterator, as `LoadedModel.explain` does.

    Raises:
        InputError: a model whose attention is not accessible, or as `LoadedModel.explain` does.
    """
    if isinstance(model, LoadedModel):
        if labels is not None:
            raise InputError("labels: expected None, since a loaded model has its own labels")
        return model.explain(images, top_k, batch_size, num_workers, gradient=gradient)
    network = as_network(model)
    size = BATCH_SIZE if batch_size is None else batch_size
    device = next(network.parameters()).device
    preprocessing = preprocessing_of(network)
    explainer = Explainer(network, _answers(network, labels, top_k), preprocessing, device, "no", gradient=gradient)
    if isinstance(images, Tensor) and images.is_floating_point():
        is_single = images.ndim == 3
        batches = _tensor_batches(images[None] if is_single else images, preprocessing, size)
    else:
        sources, is_single = image_sources(images)
        batches = read_batches(sources, ShownPreprocessing(preprocessing), size, num_workers, device)
    found = explainer.explain(batches)
    return next(found) if is_single else found


def as_network(model: nn.Module) -> DualCrossAttentionViT:
    """A timm model as a `DualCrossAttentionViT` of SA alone, which shares its weights.

    Raises:
        InputError: its attention is not accessible.
    """
    if isinstance(model, DualCrossAttentionViT):
        return model
    if not hasattr(model, "pretrained_cfg"):
        raise InputError(
            f"model: expected a model of load_model or create_model, or a VisionTransformer or Eva of timm, got "
            f"{type(model).__name__}"
        )
    network = DualCrossAttentionViT(model, "sa_only")
    return network.train(model.training)


def preprocessing_of(network: DualCrossAttentionViT) -> Preprocessing:
    """Resize to the input size of the network without a crop; mean, std and interpolation of its `pretrained_cfg`."""
    config = network.backbone.pretrained_cfg
    size = network.backbone.patch_embed.img_size or config["input_size"][1:]
    mean, std = (tuple(float(value) for value in config[name]) for name in ("mean", "std"))
    interpolation = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
    return Preprocessing((size[0], size[1]), (size[0], size[1]), mean, std, interpolation)


def _answers(
    network: DualCrossAttentionViT, labels: Sequence[str] | None, top_k: int
) -> Callable[[Logits, str | None], list[Prediction]]:
    classes = network.backbone.num_classes
    if labels is not None and len(labels) != classes:
        raise InputError(f"labels: expected {classes:,}, one a class, got {len(labels):,}")
    names = [f"class {index}" for index in range(classes)] if labels is None else labels

    return lambda logits, branch: answer_logits(logits, names, min(top_k, classes))


def _tensor_batches(images: Tensor, preprocessing: Preprocessing, size: int) -> Iterator[ImageBatch]:
    if images.ndim != 4:
        raise InputError(f"images: expected a tensor (3, H, W) or (B, 3, H, W), got {tuple(images.shape)}")
    return (
        ImageBatch([*repeat(None, len(part))], [*repeat(None, len(part))], [part, pixels_of(part, preprocessing)])
        for part in images.split(size)
    )


def _numpy(maps: Tensor | None) -> Any:
    return None if maps is None else maps.cpu().numpy()


def _is_finite(maps: AttentionMaps) -> list[bool]:
    parts = [maps.rollout.flatten(1), *maps.logits.values()]
    return torch.stack([each.isfinite().all(dim=-1) for each in parts]).all(0).tolist()
