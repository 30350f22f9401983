"""How faithful the attention maps of a classifier are, by deletion and insertion.

    python -m benchmarks.faithfulness runs/birds photos/ --images 150

A table with a row per map: the gain over a random map of the same model, in percent of the whole image's probability,
with the standard deviation over images and the 95 % interval of the mean; and the time of each map. The images are
every n-th of those found, so that they are the same at every call.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.measure import describe_machine, table, write_json
from dual_cross_attention import load_model
from dual_cross_attention.explanation.faithfulness import map_names, measure_faithfulness
from dual_cross_attention.explanation.maps import MAP_TITLES
from dual_cross_attention.inference.image_paths import find_images


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, model file, or directory of save_pretrained")
    parser.add_argument("folders", nargs="+", help="images, or folders of images")
    parser.add_argument("--images", type=int, default=150, help="number of images, evenly spaced")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args(arguments)
    loaded = load_model(given.model, given.device)
    paths = list(find_images(given.folders, None).paths)
    chosen = [paths[index * len(paths) // given.images] for index in range(min(given.images, len(paths)))]
    rows = {}
    for name in map_names(loaded):
        start = time.perf_counter()
        found = measure_faithfulness(loaded, chosen, [name])[name]
        row = {}
        for title, gains in (("deletion", found.deletion), ("insertion", found.insertion)):
            row[f"{title} gain, %"] = 100 * gains.mean().item()
            row[f"± (95 %), {title}"] = 196 * gains.std().item() / len(gains) ** 0.5
            row[f"sd over images, {title}"] = 100 * gains.std().item()
        rows[MAP_TITLES[name]] = row | {"mean gain, %": 100 * found.mean, "s": time.perf_counter() - start}
    setting = f"{loaded.short_name}, {len(chosen)} images; {describe_machine(loaded.device, torch.float32)}"
    print(f"{setting}\n\n{table(rows, 'map')}")
    if given.json:
        write_json(given.json, setting=setting, rows=rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
