"""Open-set re-identification: how many images of enrolled identities are missed where few others are taken for one.

    python -m benchmarks.unknown_identities runs/people --data_root Market-1501-v15.09.15 --features market.npz

The identities of the test split are split at random into two halves, several times. On one half, thresholds are fitted
as `dcal calibrate` does, for a gallery of the size of the reported one. Of the other half, half of the identities are
enrolled with all their gallery images, and all queries are searched for: those of the identities that are not enrolled
give the false-positive identification rate (FPIR), the others the false-negative one (FNIR). Gallery images of the
query's identity under its own camera are left out, or without cameras the query's own file; a query whose identity has
no others is skipped. Distractors and training identities are left out. Features are computed once and kept in
`--features`.

`--gallery_images 1` enrolls one image, at random, of each identity, on both halves; `--together` answers all reported
queries of an identity together, as `dcal identify` answers the images of a track, with thresholds of single images.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.measure import table, write_json
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.devices import choose_device
from dual_cross_attention.inference.calibrate_reid import REPEATS, compute_features, training_identities
from dual_cross_attention.inference.evaluation import read_test_images
from dual_cross_attention.inference.model_files import read_model
from dual_cross_attention.metrics.identification import IdentityDistances, identity_distances


class Features(NamedTuple):
    """Features of a test split, with identities, cameras and files as numbers. With leave-one-out, both sides are all.

    Args:
        query, gallery: (Q, D) and (G, D) float32.
        query_ids, gallery_ids: (Q,) and (G,) int64.
        query_cameras, gallery_cameras: (Q,) and (G,) int64; None: there are none.
        distance: "euclidean" or "cosine".
        query_files, gallery_files: likewise; a query does not find its own file. None: cameras decide.
    """

    query: np.ndarray
    gallery: np.ndarray
    query_ids: np.ndarray
    gallery_ids: np.ndarray
    query_cameras: np.ndarray | None
    gallery_cameras: np.ndarray | None
    distance: str
    query_files: np.ndarray | None = None
    gallery_files: np.ndarray | None = None

    @classmethod
    def load(cls, path: Path) -> "Features":
        """What `save` wrote."""
        with np.load(path) as file:
            found = {name: file.get(name) for name in cls._fields}
        return cls(**found | {"distance": f"{found['distance']}"})

    def save(self, path: Path) -> None:
        np.savez(path, **{name: each for name, each in self._asdict().items() if each is not None})

    def select(self, queries: np.ndarray, gallery: np.ndarray) -> "Features":
        """Some of each side, by (Q,) and (G,) bool or positions."""
        chosen = {"query": queries, "gallery": gallery}
        sides = {name: each for name, each in self._asdict().items() if name != "distance" and each is not None}
        return self._replace(**{name: each[chosen[name.partition("_")[0]]] for name, each in sides.items()})

    def distances(self, cross_camera_only: bool = False) -> IdentityDistances:
        """Of all queries to all gallery identities."""
        return identity_distances(
            self.query,
            self.gallery,
            self.query_ids,
            self.gallery_ids,
            self.query_cameras,
            self.gallery_cameras,
            self.distance,
            probe_files=self.query_files,
            gallery_files=self.gallery_files,
            cross_camera_only=cross_camera_only,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="run folder, model file, or directory of save_pretrained")
    parser.add_argument("--dataset", help="default: that of the run")
    parser.add_argument("--data_root", help="default: where the run found it")
    parser.add_argument("--features", type=Path, help=".npz: read if it is there, else written; then MODEL is not read")
    parser.add_argument(
        "--cross_camera_only", action="store_true", help="leave out all gallery images under the query's camera"
    )
    parser.add_argument("--gallery_images", type=int, help="images of each enrolled identity, at most; default: all")
    parser.add_argument("--together", action="store_true", help="answer all queries of an identity together")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--fpir", type=float, nargs="+", default=[0.01, 0.1])
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args(arguments)
    if given.features and given.features.exists():
        features = Features.load(given.features)
    elif given.model:
        features = features_of_model(given, Console(stderr=True))
        if given.features:
            features.save(given.features)
    else:
        parser.error("give a MODEL, or --features that are there")
    if given.gallery_images:
        features = limit_gallery(features, given.gallery_images)
    if given.cross_camera_only and features.query_cameras is None:
        parser.error("--cross_camera_only: expected images with cameras, got a dataset without them")
    distances = features.distances(given.cross_camera_only)
    probe_ids = torch.from_numpy(features.query_ids)
    splits = [split_rates(distances, probe_ids, given.fpir, seed, given.together) for seed in range(given.splits)]
    rows = {name: summarize([split[name] for split in splits]) for name in splits[0]}
    setting = f"{given.splits} splits of {len(distances.identities):,} gallery identities, {len(probe_ids):,} queries; "
    setting += f"{features.distance} distance"
    setting += ", no cameras" if features.query_cameras is None else ""
    setting += ", across cameras only" if given.cross_camera_only else ""
    setting += f", at most {given.gallery_images} images of an identity" if given.gallery_images else ""
    setting += ", queries of an identity together" if given.together else ""
    print(f"{setting}\n\n{table(rows, 'wanted FPIR')}")
    write_json(given.json, setting=setting, rows=rows, splits=splits)
    return 0


def features_of_model(given: argparse.Namespace, console: Console) -> Features:
    """Of all branches that predict, in fp32, without distractors and training identities."""
    saved, device = read_model(given.model), choose_device(given.device)
    changed = {"dataset": given.dataset, "data_root": given.data_root, "eval_batch_size": given.batch_size}
    setup = read_test_images(saved, changed, None, "refuse", console)
    task = setup.build_task(saved.model.to(device))
    found = compute_features(task, setup, device, "fp32", UnreadableImages(console.print), console)
    left_out = {*training_identities(saved, setup.data, setup.config.dataset), setup.data.distractors} - {None}
    sides = found.sides("")
    columns = {name: None if column is None else column.cpu().numpy() for name, column in sides._asdict().items()}
    features = Features(**columns, distance=task.distance)
    kept = [~np.isin(ids, sorted(left_out)) for ids in (features.query_ids, features.gallery_ids)]
    return features.select(*kept)


def limit_gallery(features: Features, number: int, seed: int = 0) -> Features:
    """At most so many gallery images of each identity, chosen at random."""
    order = np.random.default_rng(seed).permutation(len(features.gallery_ids))
    seen: dict[int, int] = {}
    kept = []
    for place in order.tolist():
        identity = int(features.gallery_ids[place])
        seen[identity] = seen.get(identity, 0) + 1
        if seen[identity] <= number:
            kept.append(place)
    return features.select(np.arange(len(features.query)), np.array(sorted(kept)))


def together(distances: IdentityDistances, probe_ids: Tensor) -> IdentityDistances:
    """One probe of each identity: the distance of an enrolled one is the mean over its probes that may find it."""
    rows, own = [], []
    for identity in probe_ids.unique():
        of_probe = probe_ids == identity
        found = distances.distances[of_probe]
        rows.append(found.masked_fill(found.isinf(), math.nan).nanmean(0).nan_to_num(math.inf))
        own.append(distances.own[of_probe][0])
    return IdentityDistances(torch.stack(rows), distances.identities, torch.stack(own))


def split_rates(
    distances: IdentityDistances,
    probe_ids: Tensor,
    rates: Sequence[float],
    seed: int,
    queries_together: bool = False,
) -> dict[str, dict[str, float]]:
    """One random split: by wanted rate, percent, and the rank-1 accuracy of queries of enrolled identities.

    Args:
        distances: of all queries to all gallery identities.
        probe_ids: (P,) the identities of the queries.
        rates: false-positive identification rates.
        seed: of the split.
        queries_together: whether the reported queries of an identity are answered together.
    """
    identities = torch.cat([distances.identities, probe_ids]).unique()
    order = identities[torch.randperm(len(identities), generator=torch.Generator().manual_seed(seed))]
    fitted_on, reported = order[: len(order) // 2], order[len(order) // 2 :]
    enrolled = reported[: len(reported) // 2]
    size = int(torch.isin(distances.identities, enrolled).sum())
    of_fit, of_report = (
        distances.select(torch.isin(probe_ids, probed), torch.isin(distances.identities, in_gallery))
        for probed, in_gallery in ((fitted_on, fitted_on), (reported, enrolled))
    )
    if queries_together:
        of_report = together(of_report, probe_ids[torch.isin(probe_ids, reported)])
    fitted, scores = of_fit.scores_by_size([size], REPEATS, seed)[size], of_report.scores()
    rows = {}
    for rate in rates:
        threshold = fitted.threshold(rate)
        enough = rate * len(scores.nonmated) >= 1
        rows[f"{100 * rate:g} %"] = {
            "enrolled identities": float(size),
            "rank-1 %": 100 * (1 - scores.fnir(math.inf)),
            "FNIR % at this FPIR": 100 * scores.fnir(scores.threshold(rate)) if enough else math.nan,
            "FPIR % of the fitted threshold": 100 * scores.fpir(threshold),
            "FNIR % of the fitted threshold": 100 * scores.fnir(threshold),
            "right % of the accepted": 100 * right_of_accepted(of_report, threshold),
        }
    return rows


def right_of_accepted(distances: IdentityDistances, threshold: float) -> float:
    """Of the mated probes that get an identity, the share that gets its own, 0..1; NaN if none gets one."""
    own, nearest = distances.own_distances, distances.other_distances.amin(1)
    accepted = own.isfinite() & (torch.minimum(own, nearest) <= threshold)
    return (own < nearest)[accepted].double().mean().item()


def summarize(splits: Sequence[dict[str, float]]) -> dict[str, str]:
    """Mean ± standard deviation of each column over the splits where it is a number; – if there is none."""
    columns = {name: [split[name] for split in splits if not math.isnan(split[name])] for name in splits[0]}
    return {
        name: "–" if not values else f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
        for name, values in columns.items()
    }


if __name__ == "__main__":
    sys.exit(main())
