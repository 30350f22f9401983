"""Loaded models: a trained model with its preprocessing and labels."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.data.preprocessing import Preprocessing
from dual_cross_attention.devices import autocast, available_precision, choose_precision, precision_setting
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.answers import NOT_FINITE, answer_logits
from dual_cross_attention.inference.calibration import Calibration
from dual_cross_attention.inference.fingerprint import digest_weights, fingerprint
from dual_cross_attention.inference.inputs import Source, image_sources
from dual_cross_attention.inference.model_files import (
    ARCHITECTURE,
    CHOSEN_BY,
    PRETRAINED_NAME,
    SavedModel,
    find_model_file,
    read_model,
)
from dual_cross_attention.inference.onnx_model import OnnxModel
from dual_cross_attention.inference.prediction import Embedding, Prediction
from dual_cross_attention.inference.pretrained_directory import write_directory
from dual_cross_attention.inference.reading import ImageBatch, read_batches
from dual_cross_attention.text import escape

if TYPE_CHECKING:
    from dual_cross_attention.explanation.explanation import Explanation
    from dual_cross_attention.explanation.matching import MatchMethod
    from dual_cross_attention.explanation.pairs import PairExplanation
    from dual_cross_attention.web.server import DemoServer

Branch = Literal["sa", "glca"]
BATCH_SIZE = 32
"""Default of `batch_size`."""
LOGGER = logging.getLogger(__name__)


def load_model(path: str | Path, device: str = "auto", precision: str | None = None) -> "LoadedModel":
    """Loads a trained model for `predict` and `embed`.

    Args:
        path: a run's folder (its best model), a .safetensors file of one, a directory of `save_pretrained`, an .onnx
            file of `dcal export`, which ONNX Runtime runs on the CPU, or "hf:ORG/NAME@REVISION" (a str), a model of
            `dcal publish` on the Hugging Face Hub, whose model.safetensors is downloaded.
        device: "auto" (CUDA, else MPS, else CPU), "cpu", "cuda" or "mps".
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the device has it in hardware, fp16 on older CUDA,
            fp32 elsewhere; None: as in training, where the device has it.

    Raises:
        InputError: no model there, a file that is not one, or a device or precision that this machine does not have.
    """
    file = find_model_file(path)
    saved = read_model(file)
    chosen = saved.choose_device(device)
    if isinstance(saved.model, OnnxModel):
        saved.model.check_hardware(chosen.type, precision)
        return LoadedModel(saved, chosen, saved.model.dtype, f"{file}")
    wanted = precision or available_precision(saved.config.precision, chosen)
    mixed = choose_precision(wanted, chosen, saved.config.format_version if precision is None else FORMAT_VERSION)
    return LoadedModel(saved, chosen, precision_setting(mixed), f"{file}")


class LoadedModel:
    """A trained model with its preprocessing and labels. Made by `load_model`.

    Attributes:
        model: the `DualCrossAttentionViT`, in evaluation mode; of an .onnx file, an `OnnxModel`.
        labels: names of the classes; for re-ID, of the training identities.
        transform: the `Preprocessing`: called with a path or a PIL image, it gives the tensor that `model` reads.
        task: "fgvc" or "reid".
        config: the settings that it was trained with.
        metrics: of its epoch, in percent.
        data: the fingerprint of the data it was trained on; None where the file does not say.
        calibration: the `Calibration` of a classifier, the `ReIDCalibration` of re-identification, which says up to
            which distance two features are of one identity; None as long as the model is not calibrated.
        chosen_by: how its epoch was chosen; None where the file does not say.
        device, precision, source: where and how it computes, and the file it was read from.
    """

    def __init__(self, saved: SavedModel, device: torch.device, precision: str, source: str):
        self._exported = saved.model if isinstance(saved.model, OnnxModel) else None
        self.model: Any = saved.model.to(device)
        self.labels, self.config, self.metrics, self.data = saved.classes, saved.config, saved.metrics, saved.data
        self.transform: Preprocessing = saved.preprocessing
        self.calibration, self.chosen_by = saved.calibration, saved.chosen_by
        self.task = saved.config.task
        self.device, self.precision, self.source = device, precision, source
        self._said = False

    def predict(
        self,
        images: Any,
        top_k: int = 5,
        branch: Branch | None = None,
        batch_size: int | None = None,
        num_workers: int = 0,
    ) -> Prediction | Iterator[Prediction]:
        """Classifies images.

        Args:
            images: a path, a PIL image, a uint8 array (H, W, 3) or a uint8 tensor (3, H, W), or any iterable of them.
            top_k: classes of each `Prediction.top`, at most all.
            branch: "sa" or "glca" alone; None: the mean of both, where the model has both.
            batch_size: images of one forward pass; None: `BATCH_SIZE`.
            num_workers: workers that read images; 0 reads in this one.

        Returns:
            One image gives one `Prediction`; an iterable gives an iterator, which reads and computes batch by batch
            while it is consumed. An image that cannot be read has its `error` set.

        Raises:
            InputError: a re-identification model, a branch that the model does not have, or images of another kind
                (for the elements of an iterable, while the result is consumed).
        """
        if self.task == "reid":
            raise InputError(
                f"'{self.source}' is a re-identification model, which knows its training identities only: use embed"
            )
        if top_k < 1:
            raise InputError(f"top_k: expected at least 1, got {top_k}")
        self._check_branch(branch)
        self._say_not_calibrated()
        sources, is_single = image_sources(images)
        found = self._predict(self._batches(sources, batch_size, num_workers), min(top_k, len(self.labels)), branch)
        return next(found) if is_single else found

    def embed(
        self, images: Any, branch: Branch | None = None, batch_size: int | None = None, num_workers: int = 0
    ) -> Tensor:
        """Computes features, (N, D) float32 on CPU; one image gives (1, D).

        Args:
            images, branch, batch_size, num_workers: as in `predict`; without a branch, D is the width of SA's and
                GLCA's class tokens together, where the model has both.

        Raises:
            InputError: as in `predict`, or an image that cannot be read; `embeddings` continues after those.
        """
        features = []
        for number, embedding in enumerate(self.embeddings(images, branch, batch_size, num_workers)):
            if embedding.error:
                name = f"'{embedding.path}'" if embedding.path else f"images[{number}]"
                raise InputError(
                    f"{name} cannot be read: {embedding.error}; embeddings() reports such images one by one"
                )
            features.append(torch.from_numpy(embedding.feature))
        return torch.stack(features) if features else torch.zeros(0, self.feature_width(branch))

    def embeddings(
        self, images: Any, branch: Branch | None = None, batch_size: int | None = None, num_workers: int = 0
    ) -> Iterator[Embedding]:
        """Like `embed`, but yields an `Embedding` per image; an image that cannot be read has its `error` set."""
        self._check_branch(branch)
        return self._embed(self._batches(image_sources(images)[0], batch_size, num_workers), branch)

    def explain(
        self,
        images: Any,
        top_k: int = 3,
        batch_size: int | None = None,
        num_workers: int = 0,
        keep_image: bool = True,
        gradient: bool = False,
    ) -> "Explanation | Iterator[Explanation]":
        """What the model attends to in images: rollout, local tokens, GLCA's attention, and predictions.

        Args:
            images, batch_size, num_workers: as in `predict`.
            top_k: classes of each prediction.
            keep_image: keep the pixels, which `Explanation.figure` needs; False saves their time and memory.
            gradient: also gradient × rollout, the most faithful map, which needs a backward pass; classifiers only.

        Returns:
            One image gives one `Explanation`; an iterable gives an iterator, which reads and computes batch by batch
            while it is consumed. An image that cannot be read has its `error` set.

        Raises:
            InputError: as in `predict`; re-identification models give maps without predictions.
        """
        from dual_cross_attention.explanation.explainer import Explainer
        from dual_cross_attention.explanation.shown_image import ShownPreprocessing

        self.check_is_pytorch("explain")
        if top_k < 1:
            raise InputError(f"top_k: expected at least 1, got {top_k}")
        if self.task != "reid":
            self._say_not_calibrated()
        sources, is_single = image_sources(images)
        preprocessing = ShownPreprocessing(self.transform) if keep_image else self.transform
        batches = self._batches(sources, batch_size, num_workers, preprocessing)
        found = Explainer.of_loaded(self, top_k, gradient).explain(batches)
        return next(found) if is_single else found

    def explain_pair(
        self, first: Any, second: Any, method: "MatchMethod | None" = None, matches: int = 10
    ) -> "PairExplanation":
        """Which regions of two images match, and the distance of their features.

        Args:
            first, second: an image each, as in `predict`.
            method: "pwca" or "cosine", see `explanation/matching.py`; None: the more faithful one.
            matches: number of pairs of patches.

        Raises:
            InputError: an image that cannot be read, or another method.
        """
        from dual_cross_attention.explanation.pairs import DEFAULT_METHOD, explain_pair

        self.check_is_pytorch("explain_pair")
        return explain_pair(self, first, second, DEFAULT_METHOD if method is None else method, matches)

    def demo(
        self,
        index: str | Path | None = None,
        examples: Sequence[str] = (),
        host: str = "127.0.0.1",
        port: int | None = None,
        auth: Sequence[tuple[str, str]] = (),
        top_k: int = 5,
        prevent_thread_lock: bool = False,
        allow_hosts: Sequence[str] = (),
    ) -> "DemoServer":
        """Serves a web page that applies the model to images; a notebook shows it. Needs the extra `[web]`.

        Args:
            index: folder of an index of this model, see `dcal index`.
            examples: image files that the page offers.
            host, port: where it listens; port None: the first free one from 7860 on.
            auth: users and their passwords; empty: no password is asked for.
            top_k: number of classes.
            prevent_thread_lock: return at once in a script, too, as in Gradio's `launch`; the page ends with the
                script. False: a script waits until Ctrl-C; a notebook or an interactive Python never waits.
            allow_hosts: names under which a proxy serves the page; "*": any.

        Returns:
            The server, which has an `address` and runs until `close()` or the end of the process.

        Raises:
            InputError: Gradio is not installed, the port is taken, or the index is of another model.
        """
        from dual_cross_attention.web.server import serve, wait_in_script

        server = serve(self, index, examples, host, port, auth, top_k, inline=None, allow_hosts=allow_hosts)
        print(server.address, flush=True)
        if not prevent_thread_lock:
            wait_in_script(server)
        return server

    def feature_width(self, branch: Branch | None = None) -> int:
        """D of the features."""
        return self.model.embed_dim * len(self._branches(branch))

    def fingerprint(self, branch: Branch | None = None) -> str:
        """32 hex digits over weights, branch, preprocessing, and how features are made; see `fingerprint.py`."""
        return self._fingerprint_with(self._weights_digest, branch)

    def source_fingerprint(self, branch: Branch | None = None) -> str | None:
        """Of a float32 file of `dcal export`, the fingerprint of the model that it was exported from, whose features
        were equal within `MAX_EMBEDDING` of `export/gate.py`; None: of any other model."""
        digest = self._exported and self._exported.source_digest
        return self._fingerprint_with(digest, branch) if digest else None

    def _fingerprint_with(self, weights_digest: str, branch: Branch | None) -> str:
        settings = {
            "architecture": {name: getattr(self.config, name) for name in ARCHITECTURE},
            "preprocessing": self.transform.to_json(),
            "branches": self._branches(branch),
            "after_neck": self._after_neck,
            "normalize": self._normalize,
        }
        return fingerprint(weights_digest, settings)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes model.safetensors, config.json and README.md (a model card) into a directory, for `load_model`.

        Raises:
            InputError: it cannot be written, or is a run's folder.
        """
        self.check_is_pytorch("save_pretrained")
        state = {name: tensor.cpu() for name, tensor in self.model.state_dict().items()}
        write_directory(
            Path(directory),
            state,
            self.config,
            self.labels,
            self.metrics,
            self.data,
            self.transform,
            self.calibration,
            self.chosen_by,
        )

    @property
    def is_exported(self) -> bool:
        """Whether it is an exported graph, which has no weights and no attention that could be read."""
        return self._exported is not None

    def check_is_pytorch(self, what: str) -> None:
        """Raises InputError for an exported graph."""
        if self.is_exported:
            raise InputError(f"{what}: '{self.source}' is an exported graph: load the model that it was exported from")

    @property
    def short_name(self) -> str:
        """For figures: the name of the run folder, or of the file where it has another name than those of a run."""
        path = Path(self.source)
        return path.parent.name if path.name in (*CHOSEN_BY, PRETRAINED_NAME) and path.parent.name else path.stem

    @cached_property
    def _weights_digest(self) -> str:
        return self._exported.digest if self._exported else digest_weights(self.model.state_dict())

    # Of re-ID's settings; a classifier has no neck, and its features are normalized.
    @property
    def _after_neck(self) -> bool:
        return getattr(self.config, "feature", "before_neck") == "after_neck"

    @property
    def _normalize(self) -> bool:
        return getattr(self.config, "normalize_features", True)

    def _branches(self, branch: Branch | None) -> list[str]:
        return [branch] if branch else self.model.predicting_branches

    def _check_branch(self, branch: str | None) -> None:
        there = self.model.test_branches
        if branch is not None and branch not in there:
            raise InputError(f"branch: expected {' or '.join(there)}, which this model has, got {branch!r}")

    def _batches(
        self,
        sources: Iterator[Source],
        batch_size: int | None,
        num_workers: int,
        preprocessing: Callable[[Any], Any] | None = None,
    ) -> Iterator[ImageBatch]:
        batch_size = BATCH_SIZE if batch_size is None else batch_size
        if batch_size < 1 or num_workers < 0:
            raise InputError(
                f"expected a batch_size of at least 1 and num_workers of at least 0, got {batch_size} and {num_workers}"
            )
        return read_batches(sources, preprocessing or self.transform, batch_size, num_workers, self.device)

    def _predict(self, batches: Iterator[ImageBatch], top_k: int, branch: Branch | None) -> Iterator[Prediction]:
        for batch in batches:
            rows: Iterator[Prediction] = iter(())
            if batch.images is not None:
                with autocast(self.device, self.precision):
                    logits = self.model.predict_logits(batch.images.to(self.device, non_blocking=True), branch)
                rows = iter(self.answer(logits, top_k, branch))
            for path, error in zip(batch.paths, batch.errors, strict=True):
                yield Prediction(path, error=error) if error else replace(next(rows), path=path)

    def answer(self, logits: dict[str, Tensor], top_k: int, branch: str | None = None) -> list[Prediction]:
        """`answer_logits` with the labels and the calibration of the model."""
        calibration = self.calibration if isinstance(self.calibration, Calibration) else None
        return answer_logits(logits, self.labels, top_k, calibration, branch)

    def _say_not_calibrated(self) -> None:
        """Warns once, in one line."""
        if self.calibration is None and not self._said:
            self._said = True
            LOGGER.info(
                f"{escape(self.source)} is not calibrated: probabilities are those of the softmax, and known is None; "
                "dcal calibrate fits both on images that it was not trained on"
            )

    def _embed(self, batches: Iterator[ImageBatch], branch: Branch | None) -> Iterator[Embedding]:
        for batch in batches:
            rows = iter(())
            if batch.images is not None:
                rows = iter(self._features(batch.images.to(self.device, non_blocking=True), branch))
            for path, error in zip(batch.paths, batch.errors, strict=True):
                feature = None if error else next(rows)
                if feature is not None and not np.isfinite(feature).all():
                    feature, error = None, NOT_FINITE
                yield Embedding(path, feature, error)

    @torch.no_grad()
    def _features(self, images: Tensor, branch: Branch | None) -> np.ndarray:
        """(B, D) float32, as `ReIDTask.gather_features` makes them."""
        with autocast(self.device, self.precision):
            together = self.model.embed(images, branch).float()  # before the necks, which see float32
            if self._after_neck:
                branches = self._branches(branch)
                features = dict(zip(branches, together.chunk(len(branches), dim=1), strict=True))
                together = torch.cat([*self.model.through_necks(features).values()], dim=1).float()
        return (F.normalize(together, dim=1) if self._normalize else together).cpu().numpy()
