"""Fits the calibration of re-identification: thresholds on the distance by gallery size, and P(same)."""

import math
from collections.abc import Callable
from datetime import date
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.data.reid.identities import ReIDData
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.devices import autocast
from dual_cross_attention.errors import InputError, TrainingDivergedError
from dual_cross_attention.inference.calibration import TOGETHER
from dual_cross_attention.inference.calibrator import Calibrator, Fitted
from dual_cross_attention.inference.evaluation_loop import run_eval_steps
from dual_cross_attention.inference.halves import first_half
from dual_cross_attention.inference.model_files import SavedModel
from dual_cross_attention.inference.reid_calibration import CalibratedDistance, HeldOut, HeldOutRates, ReIDCalibration
from dual_cross_attention.metrics.identification import IdentityDistances, identity_distances
from dual_cross_attention.metrics.pair_probability import fit_same, log_loss
from dual_cross_attention.progress import track
from dual_cross_attention.tasks.reid import ReIDTask, TestFeatures
from dual_cross_attention.tasks.reid_data import ReIDSetup

FEW_IDENTITIES = 50
"""Below this, a warning says that the fit is uncertain."""
REPEATS = 50
"""Random galleries of each size."""
MOST_PAIRS = 10**6
"""Of different identities, that P(same) is fitted on."""


class DistancesOfProbes(NamedTuple):
    """What calibration needs of a labeled test split.

    Args:
        tables: by answer, "together", "sa" and "glca": distances of probes to gallery identities.
        probe_ids: (P,) int64, the identity of each probe.
        gallery_images: of all identities of the tables.
    """

    tables: dict[str, IdentityDistances]
    probe_ids: Tensor
    gallery_images: int

    def of(self, identities: Tensor) -> "DistancesOfProbes":
        """Probes and gallery of some identities alone, given by number; raises InputError if none is left."""
        enrolled = torch.isin(self.tables[TOGETHER].identities, identities)
        probes = torch.isin(self.probe_ids, identities)
        tables = {name: table.select(probes, enrolled) for name, table in self.tables.items()}
        return DistancesOfProbes(tables, self.probe_ids[probes], self.gallery_images)


class ReIDCalibrator(Calibrator[ReIDSetup]):
    """See `Calibrator`.

    Args:
        saved: the model.
        fpir: the wanted false-positive identification rate.

    Raises:
        InputError: the rate is not between 0 and 1.
    """

    options = ("fpir",)

    def __init__(self, saved: SavedModel, fpir: float = 0.01):
        if not 0 < fpir < 1:
            raise InputError(f"--fpir: expected a rate above 0 and below 1, got {fpir}")
        self.saved, self.fpir = saved, fpir

    def fit(
        self,
        setup: ReIDSetup,
        data: DataFingerprint,
        split: str | None,
        device: torch.device,
        precision: str,
        unreadable: UnreadableImages,
        console: Console,
    ) -> Fitted:
        trained = training_identities(self.saved, setup.data, setup.config.dataset)
        if trained:
            console.print(
                f"note: {len(trained):,} of the identities are training identities of the model and are left out",
                style="yellow",
            )
        left_out = trained if setup.data.distractors is None else {*trained, setup.data.distractors}
        task = setup.build_task(self.saved.model.to(device))
        features = compute_features(task, setup, device, precision, unreadable, console)
        found = measure_distances(features, task, left_out)
        table = found.tables[TOGETHER]
        check_enough(found, self.fpir)
        sizes = gallery_sizes(len(table.identities))
        answers = {name: fit_answer(each, self.fpir, sizes) for name, each in found.tables.items()}
        source = setup.data.camera_source
        held_out = measure_held_out(found, self.fpir, lambda one: source.identity(one) if source else f"{one}")
        calibration = ReIDCalibration(
            answers,
            sizes,
            task.distance,
            self.fpir,
            len(table.identities),
            found.gallery_images,
            len(found.probe_ids),
            found.gallery_images + (0 if setup.split.leave_one_out else len(found.probe_ids)),
            setup.config.dataset,
            "-".join(data.splits[name].digest for name in setup.test_splits),
            date.today().isoformat(),
            held_out,
        )
        counts: dict[str, Any] = {"predicting": task.model.predicting_branches, "images": calibration.images}
        counts["identities"] = calibration.identities
        return Fitted(calibration, counts, uncertainties(calibration))


def training_identities(saved: SavedModel, data: ReIDData, dataset: str) -> set[int]:
    """Identities of a test split that the model was trained on, by their names in the same dataset."""
    trained_on = saved.data.dataset if saved.data else saved.config.dataset
    return data.training_identities(saved.classes) if dataset == trained_on else set()


@torch.no_grad()
def compute_features(
    task: ReIDTask,
    setup: ReIDSetup,
    device: torch.device,
    precision: str,
    unreadable: UnreadableImages,
    console: Console,
) -> TestFeatures:
    """Features of all queries and gallery images that can be read, as `dcal eval` and `LoadedModel.embed` make them.

    Raises:
        InputError: none of the queries or of the gallery can be read, or features are NaN or infinite.
    """
    loader = setup.test_loader(task.model, device)
    try:
        with autocast(device, precision):
            run_eval_steps(task, track(unreadable.watch(loader), "calibrate", len(loader), console))
            return task.gather_features()
    except TrainingDivergedError as error:
        raise InputError("the model's features are NaN or infinite: it cannot be calibrated") from error


def measure_distances(features: TestFeatures, task: ReIDTask, left_out: set[int]) -> DistancesOfProbes:
    """Distances of all answers, by the distance of the settings.

    Args:
        left_out: identities that are neither searched for nor enrolled.

    Raises:
        InputError: no identity is left.
    """
    tables: dict[str, IdentityDistances] = {}
    for name in ["", *task.test_branches]:
        if [name] == task.model.predicting_branches:
            tables[name] = tables[TOGETHER]
            continue
        sides = features.sides(name)
        is_left_out = torch.tensor(sorted(left_out), dtype=torch.int64)
        probes, enrolled = (~torch.isin(ids, is_left_out) & (ids >= 0) for ids in (sides.query_ids, sides.gallery_ids))
        if not (probes.any() and enrolled.any()):
            raise InputError(
                "no identity is left to calibrate on: a model is never calibrated on its training identities; give "
                "--data_root of others"
            )
        kept = [
            None if each is None else each[probes if place % 2 == 0 else enrolled] for place, each in enumerate(sides)
        ]
        probe_files, gallery_files = kept[6:]
        tables[name or TOGETHER] = identity_distances(
            *kept[:6], task.distance, probe_files=probe_files, gallery_files=gallery_files
        )
    return DistancesOfProbes(tables, sides.query_ids[probes], int(enrolled.sum()))


def gallery_sizes(identities: int) -> tuple[int, ...]:
    """1, 3, 10, 30, …, and as the last one all identities but that of the probe."""
    largest = identities - 1
    steps = [factor * 10**power for power in range(len(f"{largest}")) for factor in (1, 3)]
    return (*(size for size in steps if size < largest), largest)


def check_enough(found: DistancesOfProbes, fpir: float) -> None:
    """Raises InputError if these identities or probes cannot tell the rate."""
    table, probes, needed = found.tables[TOGETHER], len(found.probe_ids), math.ceil(1 / fpir)
    identities = len(table.identities)
    if identities < 2:
        raise InputError(f"expected at least 2 gallery identities to calibrate on, got {identities}")
    if not table.own_distances.isfinite().any():
        raise InputError(
            "no query has another image of its identity, under another camera if there are any, in the gallery"
        )
    if probes < needed:
        raise InputError(
            f"--fpir {fpir:g} needs at least {needed:,} query images, and there are {probes:,}: give more, or --fpir "
            f"of at least {math.ceil(1e3 / probes) / 1e3:g}"
        )


def fit_answer(table: IdentityDistances, fpir: float, sizes: tuple[int, ...]) -> CalibratedDistance:
    """Thresholds by gallery size, and P(same) of a probe and an identity.

    Raises:
        InputError: the distances are not informative.
    """
    by_size = table.scores_by_size(sizes, REPEATS)
    # Nested galleries: a threshold grows with the size only where many distances are equal.
    thresholds = tuple(accumulate((by_size[size].threshold(fpir) for size in sizes), min))
    return CalibratedDistance(thresholds, *fit_same(*pairs(table)))


def pairs(table: IdentityDistances) -> tuple[Tensor, Tensor]:
    """Distances of probes to their own identity, (N,), and to others, (M,), at most `MOST_PAIRS`."""
    own, others = table.own_distances, table.other_distances
    different = others[others.isfinite()]
    if len(different) > MOST_PAIRS:
        generator = torch.Generator().manual_seed(0)
        different = different[torch.randint(len(different), (MOST_PAIRS,), generator=generator)]
    return own[own.isfinite()], different


def measure_held_out(found: DistancesOfProbes, fpir: float, name_of: Callable[[int], str]) -> HeldOut | None:
    """Fits on half of the identities and measures on the other half; None if a half has too few, or distances that are
    not informative.

    Args:
        name_of: from an identity's number to its name, whose hash decides the half.
    """
    identities = torch.cat([found.tables[TOGETHER].identities, found.probe_ids]).unique()
    first = first_half([name_of(identity) for identity in identities.tolist()])
    try:
        fitted_on, measured_on = found.of(identities[first]), found.of(identities[~first])
        for half in (fitted_on, measured_on):
            check_enough(half, fpir)
        sizes = gallery_sizes(min(len(half.tables[TOGETHER].identities) for half in (fitted_on, measured_on)))
        fits = {name: fit_answer(table, fpir, sizes) for name, table in fitted_on.tables.items()}
    except InputError:
        return None
    answers = {}
    for name, table in measured_on.tables.items():
        fitted, by_size = fits[name], table.scores_by_size(sizes, REPEATS)
        rates = [(by_size[size], threshold) for size, threshold in zip(sizes, fitted.thresholds, strict=True)]
        answers[name] = HeldOutRates(
            fitted.thresholds,
            tuple(scores.fpir(threshold) for scores, threshold in rates),
            tuple(scores.fnir(threshold) if len(scores.mated) else None for scores, threshold in rates),
            log_loss(*pairs(table), fitted.intercept, fitted.slope),
        )
    return HeldOut(len(measured_on.tables[TOGETHER].identities), len(measured_on.probe_ids), sizes, answers)


def uncertainties(calibration: ReIDCalibration) -> list[str]:
    """Why the fit may be uncertain, a line each."""
    lines = []
    if calibration.identities < FEW_IDENTITIES:
        lines.append(f"calibrated on {calibration.identities:,} identities only: expected at least {FEW_IDENTITIES}")
    if calibration.held_out is None:
        lines.append(
            f"too few identities or query images to measure --fpir {calibration.fpir:g} on a half that the thresholds "
            "were not fitted on: their rates are not verified"
        )
    return lines
