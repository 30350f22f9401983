"""How well images of unknown identities are grouped: the adjusted Rand index of `dcal identify --cluster`.

    python -m benchmarks.grouping --features market.npz --identities 10 30 60 120

`--features` is a file of `benchmarks.unknown_identities`. Its identities are split at random into two halves, several
times: P(same) is fitted on one as `dcal calibrate` does, and the queries of some identities of the other are grouped by
average linkage, with no camera left out. Groups are compared with the identities by the adjusted Rand index (Hubert and
Arabie 1985): 1 for the same groups, 0 on average for random ones. Beside it, the index at the distance at which P(same)
is one half, at the threshold for a gallery of one identity and FPIR 1 %, and at the best distance for these images.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import comb

from benchmarks.measure import table, write_json
from benchmarks.unknown_identities import Features, summarize
from dual_cross_attention.gallery.cluster import group
from dual_cross_attention.inference.calibrate_reid import fit_answer

BEST_OF = 60
"""Distances among which the best one is looked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help=".npz of benchmarks.unknown_identities")
    parser.add_argument("--identities", type=int, nargs="+", default=[10, 30, 60, 120])
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args(arguments)
    features = Features.load(given.features)
    splits = [split_indices(features, given.identities, seed) for seed in range(given.splits)]
    rows = {name: summarize([split[name] for split in splits]) for name in splits[0]}
    print(f"{given.splits} splits; {features.distance} distance\n\n{table(rows, 'identities')}")
    write_json(given.json, rows=rows, splits=splits)
    return 0


def split_indices(features: Features, numbers: Sequence[int], seed: int) -> dict[str, dict[str, float]]:
    """One random split: by number of identities, the adjusted Rand index in percent at each distance."""
    order = np.random.default_rng(seed).permutation(np.unique(features.query_ids))
    fitted_on, reported = order[: len(order) // 2], order[len(order) // 2 :]
    probes, enrolled = np.isin(features.query_ids, fitted_on), np.isin(features.gallery_ids, fitted_on)
    fitted = fit_answer(features.select(probes, enrolled).distances(), 0.01, (1,))
    rows = {}
    for number in numbers:
        chosen = np.isin(features.query_ids, reported[:number])
        images, identities = features.query[chosen].astype(np.float64), features.query_ids[chosen]
        distances = cdist(images, images, features.distance)
        scores = {
            "P(same) = 0.5": adjusted_rand_index(identities, group(distances, -fitted.intercept / fitted.slope)),
            "threshold of one identity": adjusted_rand_index(identities, group(distances, fitted.thresholds[0])),
            "best distance": max(
                adjusted_rand_index(identities, group(distances, limit))
                for limit in np.quantile(distances, np.linspace(0, 0.3, BEST_OF))
            ),
        }
        rows[f"{number}"] = {"images": float(chosen.sum())} | {name: 100 * score for name, score in scores.items()}
    return rows


def adjusted_rand_index(one: Sequence[int] | np.ndarray, other: Sequence[int] | np.ndarray) -> float:
    """Agreement of two groupings of the same items, corrected for chance."""
    (_, one), (_, other) = (np.unique(each, return_inverse=True) for each in (one, other))
    counts = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(counts, (one, other), 1)
    together = comb(counts, 2).sum()
    pairs_one, pairs_other = comb(counts.sum(1), 2).sum(), comb(counts.sum(0), 2).sum()
    expected = pairs_one * pairs_other / comb(len(one), 2)
    most = (pairs_one + pairs_other) / 2
    return 1.0 if most == expected else float((together - expected) / (most - expected))


if __name__ == "__main__":
    sys.exit(main())
