"""How well a classifier tells images of its classes from images of other classes, and how right its probabilities are.

    python -m benchmarks.unknown runs/birds --known birds/val --unknown other_birds/

`--known` is a folder of class folders that the model was not trained on (or the folder that contains val/ or test/);
`--unknown` is any folder of images of other classes. Temperatures and thresholds are fitted on one half of the known
images, by a hash of "CLASS/FILE"; all numbers are of the other half and of the unknown images. AUROC and the
false-positive rate (unknown images called known) do not depend on a threshold that was fitted: the latter is at the
threshold that keeps the share `--keep` of the reported half. Beside it, what the fitted threshold does.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from scipy.stats import mannwhitneyu
from torch import Tensor

from benchmarks.measure import describe_machine, table, write_json
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.devices import choose_device
from dual_cross_attention.inference.calibrate_classifier import LabeledLogits, compute_logits, fit_answers
from dual_cross_attention.inference.calibration import SCORES, TOGETHER
from dual_cross_attention.inference.evaluation import read_test_images
from dual_cross_attention.inference.halves import first_half
from dual_cross_attention.inference.image_paths import find_images
from dual_cross_attention.inference.inputs import image_sources
from dual_cross_attention.inference.model_files import SavedModel, read_model
from dual_cross_attention.inference.reading import read_batches
from dual_cross_attention.metrics.calibration import expected_calibration_error, negative_log_likelihood
from dual_cross_attention.metrics.confidence import confidence, log_mean_probability, threshold_that_keeps
from dual_cross_attention.progress import track

NAMES = {TOGETHER: "SA + GLCA", "sa": "SA", "glca": "GLCA"}
Rows = dict[str, dict[str, float | None]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, model file, or directory of save_pretrained")
    parser.add_argument("--known", required=True, help="folder of class folders that the model knows")
    parser.add_argument("--unknown", required=True, nargs="+", help="folders of images of other classes")
    parser.add_argument("--keep", type=float, default=0.95, help="share of known images that stay known")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args(arguments)
    console, device = Console(stderr=True), choose_device(given.device)
    saved = read_model(given.model)
    known = known_logits(saved, given, device, console)
    unknown = unknown_logits(saved, given, device, console)
    first = first_half(known.names)
    calibrated = calibration_rows(known, first, given.keep)
    told_apart = unknown_rows(known, first, unknown, given.keep)
    number = len(next(iter(unknown.values())))
    setting = f"fitted on {int(first.sum()):,} known images, measured on {int((~first).sum()):,} known and {number:,} "
    setting += f"unknown ones; {describe_machine(device, torch.float32)}"
    print(f"{setting}\n\n{table(told_apart, 'score')}\n\n{table(calibrated, 'branch')}")
    write_json(given.json, setting=setting, rows=told_apart, calibration=calibrated)
    return 0


def known_logits(saved: SavedModel, given: argparse.Namespace, device: torch.device, console: Console) -> LabeledLogits:
    """Of the images below `--known`, in fp32."""
    changed = {"dataset": "folder", "data_root": given.known, "eval_batch_size": given.batch_size}
    setup = read_test_images(saved, changed, None, "refuse", console)
    return compute_logits(saved.model.to(device), setup, "fp32", UnreadableImages(console.print), console)


@torch.no_grad()
def unknown_logits(
    saved: SavedModel, given: argparse.Namespace, device: torch.device, console: Console
) -> dict[str, Tensor]:
    """(N, C) of the images below `--unknown`, by branch, in fp32; images that cannot be read are named and left out."""
    images = find_images(given.unknown, sys.stdin.buffer)
    sources, _ = image_sources(images.paths)
    total = images.total and -(-images.total // given.batch_size)
    found = []
    for batch in track(
        read_batches(sources, saved.preprocessing, given.batch_size, 0, device), "unknown", total, console
    ):
        for path, error in zip(batch.paths, batch.errors, strict=True):
            if error:
                console.print(f"warning: {path}: {error}")
        if batch.images is not None:
            logits = saved.model(batch.images.to(device)).logits
            found.append({name: logits[name].float().cpu() for name in saved.model.branches if name != "pwca"})
    return {name: torch.cat([batch[name] for batch in found]) for name in found[0]}


def unknown_rows(known: LabeledLogits, first: Tensor, unknown: dict[str, Tensor], keep: float) -> Rows:
    """By answer and score: how the known images of the second half are told from the unknown ones, in percent.

    Args:
        known: of all known images.
        first: (N,) bool: those that were fitted on.
        unknown: (M, C) by branch.
        keep: share of known images that stay known.
    """
    fitted_on, reported = known[first], known[~first]
    rows: Rows = {}
    for score in SCORES:
        if score == "agreement" and len(known.predicting) != 2:
            continue
        answers = fit_answers(fitted_on, score, keep)
        temperatures = {name: answer.temperature for name, answer in answers.items()}
        for name, answer in answers.items():
            if answer.score != score or (name == TOGETHER and len(known.predicting) < 2):
                continue
            others = {branch: unknown[branch] for branch in reported.of(name)}
            inside = confidence(score, reported.of(name), temperatures, answer.temperature)
            outside = confidence(score, others, temperatures, answer.temperature)
            rows[f"{score}, {NAMES[name]}"] = {
                "AUROC %": 100 * auroc(inside, outside),
                f"unknown called known at {100 * keep:g} % kept, %": 100
                * share(outside >= threshold_that_keeps(inside, keep)),
                "kept by the fitted threshold, %": 100 * share(inside >= answer.threshold),
                "unknown called known by it, %": 100 * share(outside >= answer.threshold),
            }
    return rows


def calibration_rows(known: LabeledLogits, first: Tensor, keep: float) -> Rows:
    """By answer: calibration error in percent and likelihood of the second half; arguments as of `unknown_rows`."""
    fitted_on, reported = known[first], known[~first]
    rows: Rows = {}
    for name, answer in fit_answers(fitted_on, "probability", keep).items():
        if name == TOGETHER and len(known.predicting) < 2:
            continue
        scores, labels = log_mean_probability(reported.of(name)), reported.labels
        rows[NAMES[name]] = {
            "top-1 %": 100 * share(scores.argmax(-1) == labels),
            "temperature": answer.temperature,
            "ECE % before": 100 * expected_calibration_error(scores, labels),
            "ECE % after": 100 * expected_calibration_error(scores / answer.temperature, labels),
            "NLL before": negative_log_likelihood(scores, labels),
            "NLL after": negative_log_likelihood(scores / answer.temperature, labels),
        }
    return rows


def auroc(known: Tensor, unknown: Tensor) -> float:
    """How often a known image has a higher score than an unknown one, of (N,) and (M,); ties count half."""
    wins = mannwhitneyu(known.numpy(), unknown.numpy()).statistic
    return float(wins) / (len(known) * len(unknown))


def share(chosen: Tensor) -> float:
    return chosen.double().mean().item()


if __name__ == "__main__":
    sys.exit(main())
