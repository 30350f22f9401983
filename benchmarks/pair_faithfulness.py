"""Which matches of two images lower their similarity faster when they are deleted: see `explanation/matching.py`.

    python -m benchmarks.pair_faithfulness runs/people bounding_box_test/ --identity name
    python -m benchmarks.pair_faithfulness runs/birds birds/val

Pairs are the first and the last image of an identity: a folder, or with `--identity name` the part of the file name
before the first "_". The patches of the best k matches are deleted (filled with the mean color) in one image, whose
similarity to the other, whole image is then measured; likewise with the images exchanged. A score is the mean cosine
similarity of the features for 0 to 50 % of the patches; each method's is compared with that of random matches.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import describe_machine, table, write_json
from dual_cross_attention import load_model
from dual_cross_attention.devices import autocast
from dual_cross_attention.explanation.matching import METHODS, best_pairs, match_scores
from dual_cross_attention.inference.image_paths import find_images
from dual_cross_attention.inference.loaded_model import LoadedModel

STEPS = 18
DELETED = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, model file, or directory of save_pretrained")
    parser.add_argument("folders", nargs="+", help="images, or folders of images")
    parser.add_argument("--identity", choices=("folder", "name"), default="folder")
    parser.add_argument("--pairs", type=int, default=100, help="number of pairs, evenly spaced")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args(arguments)
    loaded = load_model(given.model, given.device)
    pairs = same_identity(find_images(given.folders, None).paths, given.identity == "name")
    chosen = [pairs[index * len(pairs) // given.pairs] for index in range(min(given.pairs, len(pairs)))]
    gains = {method: [] for method in METHODS}
    for number, pair in enumerate(chosen):
        images = torch.stack([loaded.transform(path) for path in pair]).to(loaded.device)
        with autocast(loaded.device, loaded.precision):
            scores = {method: match_scores(loaded.model, images[:1], images[1:], method)[0] for method in METHODS}
        grid = grid_of(loaded, images)
        chance = np.random.default_rng(number).random(scores[METHODS[0]].shape)
        random = similarity(loaded, images, chance, grid)
        for method, values in scores.items():
            gains[method].append(random - similarity(loaded, images, values.cpu().numpy(), grid))
    rows = {
        method: {
            "gain over random matches": np.mean(values),
            "± (95 %)": 1.96 * np.std(values, ddof=1) / len(values) ** 0.5,
            "sd over pairs": np.std(values, ddof=1),
        }
        for method, values in gains.items()
    }
    difference = np.subtract(*(gains[method] for method in METHODS))
    rows[" − ".join(METHODS)] = {
        "gain over random matches": difference.mean(),
        "± (95 %)": 1.96 * difference.std(ddof=1) / len(difference) ** 0.5,
        "sd over pairs": difference.std(ddof=1),
    }
    setting = f"{loaded.short_name}, {len(chosen)} pairs; {describe_machine(loaded.device, torch.float32)}"
    print(f"{setting}\n\n{table(rows, 'matches')}")
    write_json(given.json, setting=setting, rows=rows)
    return 0


def same_identity(paths: Sequence[str], by_name: bool) -> list[tuple[str, str]]:
    """The first and the last image of each identity that has two."""
    found = defaultdict(list)
    for path in map(Path, paths):
        found[path.name.partition("_")[0] if by_name else path.parent].append(f"{path}")
    return [(images[0], images[-1]) for images in found.values() if len(images) > 1]


def grid_of(loaded: LoadedModel, images: Tensor) -> tuple[int, int]:
    """Rows and columns of patches."""
    high, wide = loaded.model.backbone.patch_embed.patch_size
    return images.shape[-2] // high, images.shape[-1] // wide


@torch.no_grad()
def similarity(loaded: LoadedModel, images: Tensor, scores: np.ndarray, grid: tuple[int, int]) -> float:
    """Mean cosine similarity of two images (2, 3, H, W) while the patches of the best matches are deleted in one."""
    order = best_pairs(scores, len(scores))  # (N, 2)
    counts = [round(DELETED * step / (STEPS // 2) * len(order)) for step in range(STEPS // 2 + 1)]
    masks = np.zeros((2, len(counts), len(order)), dtype=bool)
    for side in range(2):
        for step, count in enumerate(counts):
            masks[side, step, order[:count, side]] = True
    shown = torch.from_numpy(masks).view(2 * len(counts), 1, *grid).float().to(images.device)
    shown = F.interpolate(shown, size=images.shape[-2:], mode="nearest").bool()
    changed = images.repeat_interleave(len(counts), dim=0).masked_fill(shown, 0.0)
    with autocast(loaded.device, loaded.precision):
        features = F.normalize(loaded.model.embed(torch.cat([changed, images])).float(), dim=1)
    *_, first, second = features
    others = torch.cat([second.expand(len(counts), -1), first.expand(len(counts), -1)])
    return (features[:-2] * others).sum(1).mean().item()


if __name__ == "__main__":
    raise SystemExit(main())
