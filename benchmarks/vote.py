"""How right SA and GLCA are alone, and together by several ways of combining their probabilities.

    python -m benchmarks.vote runs/seed0 runs/seed1 runs/seed2

The models must have both branches and the same test images: those of the first one's run, or of `--dataset` and
`--data_root`. Temperatures are fitted on one half of the images, by a hash of "CLASS/FILE", and all numbers are of the
other half. "− mean" is the difference to the mean of both softmax, which every command uses: mean over the models, with
a 95 % interval of `metrics.intervals`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import add_flags, describe_machine, table, write_json
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.devices import choose_device
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.calibrate_classifier import LabeledLogits, compute_logits
from dual_cross_attention.inference.evaluation import read_test_images
from dual_cross_attention.inference.halves import first_half
from dual_cross_attention.inference.model_files import read_model
from dual_cross_attention.metrics.calibration import fit_temperature
from dual_cross_attention.metrics.confidence import log_mean_probability
from dual_cross_attention.metrics.intervals import difference_interval

MEAN = "mean of softmax"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="run folders or model files, one per seed")
    parser.add_argument("--dataset", help="of the test images; left out: that of each run")
    parser.add_argument("--data_root", help="of the test images; left out: that of each run")
    parser.add_argument("--batch_size", type=int, default=32)
    add_flags(parser)
    given = parser.parse_args(arguments)
    console, device = Console(stderr=True), choose_device(given.device)
    correct: dict[str, list[np.ndarray]] = {}
    names: list[str] | None = None
    for path in given.models:
        saved = read_model(path)
        changed = {"dataset": given.dataset, "data_root": given.data_root, "eval_batch_size": given.batch_size}
        setup = read_test_images(saved, changed, None, "refuse", console)
        found = compute_logits(saved.model.to(device), setup, "fp32", UnreadableImages(console.print), console)
        if found.predicting != ["sa", "glca"]:
            raise InputError(
                f"{path}: expected a model with SA and GLCA, got one that predicts with {found.predicting}"
            )
        if found.names != (names or found.names):
            raise InputError(f"{path}: other test images than those of {given.models[0]}")
        names = found.names
        for vote, is_right in correct_by_vote(found, first_half(names)).items():
            correct.setdefault(vote, []).append(is_right.double().numpy())
    of_the_mean = np.stack(correct[MEAN])
    rows = {
        vote: summarize(np.stack(scores), None if vote == MEAN else of_the_mean) for vote, scores in correct.items()
    }
    measured = len(correct[MEAN][0])
    setting = f"{len(given.models)} models, measured on {measured:,} of {len(names or []):,} test images"
    print(f"{setting}; {describe_machine(device, torch.float32)}\n\n{table(rows, 'vote')}")
    write_json(given.json, setting=setting, rows=rows)
    return 0


def correct_by_vote(found: LabeledLogits, first: Tensor) -> dict[str, Tensor]:
    """Whether each image of the second half is classified correctly, (N,) bool, by vote.

    Args:
        found: of all images, of SA and GLCA.
        first: (N,) bool: the images that temperatures are fitted on.
    """
    fitted_on, reported = found[first], found[~first]
    temperatures = {name: fit_temperature(logits, fitted_on.labels) or 1.0 for name, logits in fitted_on.logits.items()}
    scaled = {name: logits / temperatures[name] for name, logits in reported.logits.items()}
    scores = {
        "SA": reported.logits["sa"],
        "GLCA": reported.logits["glca"],
        MEAN: log_mean_probability(reported.logits),
        "mean of log-softmax": mean_log_probability(reported.logits),
        "mean of softmax, each at its temperature": log_mean_probability(scaled),
        "mean of log-softmax, each at its temperature": mean_log_probability(scaled),
    }
    return {vote: each.argmax(-1) == reported.labels for vote, each in scores.items()}


def mean_log_probability(logits: Mapping[str, Tensor]) -> Tensor:
    """The mean over branches of the logarithm of the softmax, (N, C): a geometric mean, not normalized."""
    return torch.stack([F.log_softmax(branch.double(), dim=-1) for branch in logits.values()]).mean(dim=0)


def summarize(correct: np.ndarray, of_the_mean: np.ndarray | None) -> dict[str, str]:
    """A row of the table, of (models, images) of 0 and 1; None: the row is of the mean itself."""
    by_model = [100 * each.mean() for each in correct]
    spread = f" ± {stdev(by_model):.2f}" if len(by_model) > 1 else ""
    row = {"top-1 %": f"{mean(by_model):.2f}{spread}", "− mean": ""}
    if of_the_mean is not None and len(by_model) > 1:
        low_to_high = difference_interval(100 * of_the_mean, 100 * correct)
        row["− mean"] = f"{low_to_high.mean:+.2f} [{low_to_high.low:+.2f}, {low_to_high.high:+.2f}]"
    return row


if __name__ == "__main__":
    sys.exit(main())
