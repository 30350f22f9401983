"""Object re-identification: identity and triplet loss on every branch, mAP and rank-k by retrieval."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor, distributed
from torch.nn import functional as F

from dual_cross_attention.attention.pairwise import sample_distractors
from dual_cross_attention.errors import InputError, TrainingDivergedError
from dual_cross_attention.losses import ReIDLoss
from dual_cross_attention.metrics import rank_gallery, retrieval_metrics
from dual_cross_attention.metrics.retrieval import Progress, RetrievalMetrics
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks.branch_schedule import BranchSchedule
from dual_cross_attention.tasks.cameras import CameraIndices
from dual_cross_attention.tasks.task import Batch, LossWeights, Task
from dual_cross_attention.tasks.training_noise import TrainingNoise

RANKS = (1, 5, 10)


@dataclass(frozen=True)
class RetrievalSplit:
    """Identity and camera of each test image: the queries first, then the gallery.

    Args:
        identities: (Q + G,) whole numbers.
        cameras: likewise; None: there are none, and a query ignores no gallery image for its camera.
        num_queries: Q; with `leave_one_out`, all images.
        files: (Q + G,) whole numbers of the image files: a query ignores gallery images of its own file. None: it
            ignores none for its file.
        leave_one_out: the queries are the gallery too, so G is 0: each image is searched for among all others.
    """

    identities: Tensor
    cameras: Tensor | None
    num_queries: int
    files: Tensor | None = None
    leave_one_out: bool = False


class RetrievalSides(NamedTuple):
    """Features and labels of queries and gallery, arguments of `retrieval_metrics`; with leave-one-out, both are all.

    Args:
        query, gallery: features (Q, D) and (G, D).
        query_ids, gallery_ids: (Q,) and (G,), likewise cameras and files, which may be None.
    """

    query: Tensor
    gallery: Tensor
    query_ids: Tensor
    gallery_ids: Tensor
    query_cameras: Tensor | None
    gallery_cameras: Tensor | None
    query_files: Tensor | None
    gallery_files: Tensor | None


@dataclass(frozen=True)
class TestFeatures:
    """Features of the test images that could be read.

    Args:
        positions: (n,) which images of the `RetrievalSplit`, in its order.
        features: by branch ("sa", "glca", and "" for what DCAL retrieves with: both concatenated, or SA's as long as
            GLCA is not trained), (n, D) or (n, 2D).
        split: the test split.
    """

    __test__ = False  # pytest takes it for a test wherever it is imported

    positions: Tensor
    features: dict[str, Tensor]
    split: RetrievalSplit

    @property
    def is_query(self) -> Tensor:
        """(n,) bool."""
        return self.positions < self.split.num_queries

    @property
    def is_gallery(self) -> Tensor:
        """(n,) bool."""
        return self.is_query if self.split.leave_one_out else ~self.is_query

    def sides(self, branch: str) -> RetrievalSides:
        """Features of a branch, and labels, of both sides."""
        split, sides = self.split, (self.is_query, self.is_gallery)
        files = torch.arange(len(split.identities)) if split.files is None and split.leave_one_out else split.files
        labels = (None if each is None else each[self.positions] for each in (split.identities, split.cameras, files))
        columns = (self.features[branch], *labels)
        return RetrievalSides(*(None if column is None else column[side] for column in columns for side in sides))

    def search_arguments(self, branch: str) -> dict[str, Tensor | bool | None]:
        """Arguments of `retrieval_metrics` and `rank_gallery` by name."""
        arguments = self.sides(branch)._asdict()
        if self.split.leave_one_out:
            arguments |= {name: None for name in arguments if name.startswith("gallery")}
        return arguments | {"leave_one_out": self.split.leave_one_out}


class ReIDTask(Task):
    """DCAL for one person or vehicle across cameras.

    "labels" of a training batch are identities, P·K to a batch; "indices" of a test batch are positions in `split`.

    Args:
        model: a model of `create_model(..., task="reid")`.
        split: the test images, in the order of their "indices".
        weight_bound: largest |w| of the loss weights.
        label_smoothing: of the cross-entropy, in [0, 1].
        triplet_margin: None is the soft margin.
        feature: retrieve with the class tokens before the BN neck, or after it.
        distance: between features.
        normalize_features: scale features to length 1 first; the Euclidean distance then ranks as the cosine does.
        schedule, loss_weights, noise: see `Task`.
        cameras: of the images, for a model with an embedding of cameras; None: all are unknown.
    """

    best_metric = "mAP"
    epoch_metrics = ("mAP", *(f"rank{k}" for k in RANKS), "mAP_sa", "rank1_sa", "mAP_glca", "rank1_glca")

    def __init__(
        self,
        model: DualCrossAttentionViT,
        split: RetrievalSplit,
        weight_bound: float = 2.0,
        label_smoothing: float = 0.0,
        triplet_margin: float | None = None,
        feature: Literal["before_neck", "after_neck"] = "before_neck",
        distance: Literal["euclidean", "cosine"] = "euclidean",
        normalize_features: bool = True,
        schedule: BranchSchedule | None = None,
        loss_weights: LossWeights = "learned",
        noise: TrainingNoise | None = None,
        cameras: CameraIndices | None = None,
    ):
        super().__init__(model, weight_bound, schedule, loss_weights, noise)
        self.cameras = cameras
        self.split, self.distance = split, distance
        self.after_neck, self.normalize_features = feature == "after_neck", normalize_features
        self.identity_loss = ReIDLoss(label_smoothing, triplet_margin)
        self.reset_metrics()

    def prepare(self, batch: Batch) -> Batch:
        """See `Task.prepare`; adds "cameras" (B,) where the model has an embedding of them."""
        batch = super().prepare(batch)
        if self.cameras is None or self.cameras.train is None:
            return batch
        return batch | {"cameras": self.cameras.of_training(batch["indices"])}

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """See `Task.training_step`. The distractor is any other image, seldom one of the same identity."""
        batch = self.prepare(batch)
        identities = batch["labels"]
        in_batch = "pwca" in self.scales and "distractor_images" not in batch and not self.model.distractor_noise
        distractors = sample_distractors(len(identities), identities.device, identities) if in_batch else None
        out = self.run_model(batch, self.scales, distractors)
        losses = {
            branch: self.identity_loss(out.logits[branch], out.features[branch], identities) for branch in self.scales
        }
        return self.combine(losses, out.logits, identities)

    def reset_metrics(self) -> None:
        """See `Task.reset_metrics`."""
        self._kept: list[tuple[Tensor, ...]] = []  # positions and features of each batch

    @torch.no_grad()
    def eval_step(self, batch: Batch) -> dict[str, Tensor]:
        """See `Task.eval_step`; keeps features on the device."""
        batch = self.to_device(batch)
        positions, valid = batch["indices"], batch["valid"]
        if self.cameras is not None and self.cameras.test is not None:
            batch = batch | {"cameras": self.cameras.of_test(positions)}
        features = self.run_model(batch).features
        self._kept.append((positions[valid], *(features[branch][valid].float() for branch in self.test_branches)))
        return features

    def compute_metrics(self, progress: Progress | None = None, rerank: bool = False) -> dict[str, float]:
        """Percent of SA and GLCA together ("mAP", "rank1", "rank5", "rank10") and of each ("mAP_sa", …).

        "valid_queries" is the number of queries with a match, over which these are means.

        Args:
            progress: see `Task.compute_metrics`.
            rerank: by k-reciprocal re-ranking.

        Raises:
            TrainingDivergedError: the model's features are not finite.
            InputError: no query or no gallery image could be read.
        """
        return self.score(self.gather_features(), rerank, progress)

    @torch.no_grad()
    def gather_features(self) -> TestFeatures:
        """Features of all test images, from all ranks; a collective. Errors as of `compute_metrics`."""
        kept = self._kept
        if distributed.is_available() and distributed.is_initialized():
            on_cpu = [tuple(part.cpu() for part in parts) for parts in kept]  # unpickled on the CPU of every rank
            kept = [tuple(part.to(self.device) for part in parts) for parts in gather_object(on_cpu)]
        columns = [torch.cat(parts) for parts in zip(*kept, strict=True)]
        if not columns or not len(columns[0]):
            raise InputError("none of the test images can be read; the warnings above say why")
        order = columns[0].argsort()
        positions, *gathered = (column[order] for column in columns)
        is_query = positions < self.split.num_queries
        for side, there in (("query", is_query), ("gallery", ~is_query)):
            if not there.any() and not self.split.leave_one_out:
                raise InputError(f"none of the {side} images can be read; the warnings above say why")
        features = dict(zip(self.test_branches, gathered, strict=True))
        if self.after_neck:  # after the gathering: the necks of ranks differ slightly
            features = self.model.through_necks(features)
        if not all(feature.isfinite().all() for feature in features.values()):
            raise TrainingDivergedError("evaluation: the model's features are NaN or infinite")
        together = torch.cat([features[branch] for branch in self.model.predicting_branches], dim=1)
        features = {"": together, **features}
        if self.normalize_features:
            features = {branch: F.normalize(feature, dim=1) for branch, feature in features.items()}
        return TestFeatures(positions.cpu(), features, self.split)

    def retrieve(
        self,
        test: TestFeatures,
        max_rank: int = max(RANKS),
        rerank: bool = False,
        progress: Progress | None = None,
    ) -> dict[str, RetrievalMetrics]:
        """Retrieval with given features by branch, "" for SA and GLCA together; SA alone is searched once.

        Args:
            max_rank, rerank, progress: see `retrieval_metrics`.
        """
        branches = [branch for branch in test.features if branch]
        found: dict[str, RetrievalMetrics] = {}
        for branch in branches if len(branches) == 1 else test.features:
            with torch.autocast(test.features[branch].device.type, enabled=False):
                found[branch] = retrieval_metrics(
                    **test.search_arguments(branch),
                    distance=self.distance,
                    max_rank=max_rank,
                    rerank=rerank,
                    progress=progress,
                )
        return found if "" in found else {"": found[branches[0]], **found}

    def score(self, test: TestFeatures, rerank: bool = False, progress: Progress | None = None) -> dict[str, float]:
        """mAP and rank-k of given features; see `compute_metrics` and `retrieve`."""
        return retrieval_scores(self.retrieve(test, rerank=rerank, progress=progress))

    def rank(
        self, test: TestFeatures, rerank: bool = False, progress: Progress | None = None
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each query, SA and GLCA together: its position, those of the gallery in order, and their distances."""
        queries, gallery = test.positions[test.is_query], test.positions[test.is_gallery]
        ranked = rank_gallery(**test.search_arguments(""), distance=self.distance, rerank=rerank, progress=progress)
        for query, (order, distances) in zip(queries, ranked, strict=True):
            yield int(query), gallery[order], distances


def retrieval_scores(found: dict[str, RetrievalMetrics]) -> dict[str, float]:
    """Metrics of `ReIDTask.retrieve` by name, in percent: "mAP", "rank1", "mAP_sa", …, and "valid_queries"."""
    metrics: dict[str, float] = {"valid_queries": found[""].num_valid_queries}
    for branch, each in found.items():
        suffix = f"_{branch}" if branch else ""
        metrics |= {f"mAP{suffix}": 100 * each.mAP} | {f"rank{k}{suffix}": 100 * each.rank(k) for k in RANKS}
    return metrics
