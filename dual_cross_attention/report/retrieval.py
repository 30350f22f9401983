"""Evaluation of re-identification, with what a report shows beyond its metrics: CMC, mAP by camera, ranked lists."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console

from dual_cross_attention.devices import autocast
from dual_cross_attention.inference.evaluation_loop import run_eval_steps
from dual_cross_attention.metrics import rank_gallery
from dual_cross_attention.metrics.retrieval import RetrievalMetrics
from dual_cross_attention.progress import track
from dual_cross_attention.report.opened_run import OpenedRun
from dual_cross_attention.tasks.reid import TestFeatures, retrieval_scores

CMC_RANKS = 50


class CameraScore(NamedTuple):
    """mAP of the queries of one camera, in percent.

    Args:
        camera: as the dataset numbers it.
        queries: with a match in the gallery.
    """

    camera: int
    queries: int
    mAP: float


class Ranked(NamedTuple):
    """What a query retrieves.

    Args:
        query: position in the test images.
        average_precision: 0..1.
        gallery: positions of the nearest gallery images, in the order of their distance.
        distances, is_match: of each of them.
    """

    query: int
    average_precision: float
    gallery: list[int]
    distances: list[float]
    is_match: list[bool]


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval with the features of all branches together, and the metrics of each branch.

    Args:
        metrics: in percent, as of `ReIDTask.compute_metrics`.
        cmc: by branch ("" for all together), (CMC_RANKS,) in percent.
        by_camera: the lowest mAP first; empty without cameras.
        ranked: of a few queries.
        queries, gallery: number of images that could be read.
    """

    metrics: dict[str, float]
    cmc: dict[str, np.ndarray]
    by_camera: list[CameraScore]
    ranked: list[Ranked]
    queries: int
    gallery: int


def evaluate_retrieval(opened: OpenedRun, queries: int, depth: int, console: Console) -> RetrievalResult:
    """One pass over the test images, and one retrieval by branch.

    Args:
        queries: number of ranked lists: half of them those with the lowest average precision, the others evenly
            spaced over the order of all other queries by average precision, up to the best one.
        depth: images of a ranked list.

    Raises:
        InputError: no query or gallery image can be read.
        TrainingDivergedError: the model's features are NaN or infinite.
    """
    batches = track(opened.unreadable.watch(opened.loader), "evaluate", len(opened.loader), console)
    with autocast(opened.loaded.device, opened.loaded.precision):
        run_eval_steps(opened.task, batches)
        features = opened.task.gather_features()

    def progress(blocks):
        return track(blocks, "retrieve", len(blocks), console)

    found = opened.task.retrieve(features, CMC_RANKS, progress=progress)
    has_glca = len(opened.task.test_branches) > 1
    chosen = choose_queries(found[""].average_precisions.numpy(), queries)
    return RetrievalResult(
        retrieval_scores(found),
        {name: 100 * each.cmc.numpy() for name, each in found.items() if has_glca or not name},
        _by_camera(features, found[""]),
        _ranked(features, found[""], chosen, depth, opened.task.distance),
        int(features.is_query.sum()),
        int(features.is_gallery.sum()),
    )


def choose_queries(average_precisions: np.ndarray, number: int) -> np.ndarray:
    """Rows of queries to show; see `evaluate_retrieval`. Queries without a match (NaN) are left out."""
    order = np.argsort(average_precisions, kind="stable")
    order = order[~np.isnan(average_precisions[order])]
    worst, others = np.split(order, [min(number // 2, len(order))])
    wanted = number - len(worst)
    if len(others) > wanted:  # without the lowest of them, which is hardly another case
        others = others[np.linspace(0, len(others) - 1, wanted + 1)[1:].round().astype(int)]
    return np.concatenate([worst, others])


def _by_camera(features: TestFeatures, found: RetrievalMetrics) -> list[CameraScore]:
    of_queries = features.sides("").query_cameras
    if of_queries is None:
        return []
    cameras = of_queries.numpy()
    precisions = found.average_precisions.numpy()
    scores = []
    for camera in np.unique(cameras):
        of_camera = precisions[cameras == camera]
        of_camera = of_camera[~np.isnan(of_camera)]
        if len(of_camera):
            scores.append(CameraScore(int(camera), len(of_camera), 100 * float(of_camera.mean())))
    return sorted(scores, key=lambda each: (each.mAP, each.camera))


def _ranked(
    features: TestFeatures, found: RetrievalMetrics, chosen: np.ndarray, depth: int, distance: str
) -> list[Ranked]:
    queries, gallery = features.positions[features.is_query], features.positions[features.is_gallery]
    rows = torch.from_numpy(chosen)
    sides = features.sides("")
    of_chosen = {
        name: column[rows.to(column.device)]  # features may be on an accelerator
        for name, column in sides._asdict().items()
        if name.startswith("query") and column is not None
    }
    lists = []
    ranking = rank_gallery(**sides._asdict() | of_chosen, distance=distance)
    for row, (order, distances) in zip(rows, ranking, strict=True):
        nearest = order[:depth]
        lists.append(
            Ranked(
                int(queries[row]),
                float(found.average_precisions[row]),
                gallery[nearest].tolist(),
                distances[:depth].tolist(),
                (sides.gallery_ids[nearest] == sides.query_ids[row]).tolist(),
            )
        )
    return lists
