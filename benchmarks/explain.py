"""Time of explanations, against predictions of the same images by the same model.

    python -m benchmarks.explain runs/birds photos/ --images 128

All rows read the same files, in this process. "maps" is `explain(keep_image=False)`, whose arrays `dcal explain --maps`
writes.
"""

import argparse
from collections.abc import Iterable, Sequence

from benchmarks.measure import add_flags, describe_machine, table, time_in_turns, write_json
from dual_cross_attention import load_model
from dual_cross_attention.devices import keep_freed_memory
from dual_cross_attention.inference.image_paths import find_images


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, model file, or directory of save_pretrained")
    parser.add_argument("folders", nargs="+", help="images, or folders of images")
    parser.add_argument("--images", type=int, default=128, help="number of images, evenly spaced")
    parser.add_argument("--figures", type=int, default=8, help="number of images whose figures are drawn")
    parser.add_argument("--repeats", type=int, default=5)
    add_flags(parser)
    given = parser.parse_args(arguments)
    keep_freed_memory()
    loaded = load_model(given.model, given.device, given.precision)
    paths = list(find_images(given.folders, None).paths)
    chosen = [paths[index * len(paths) // given.images] for index in range(min(given.images, len(paths)))]
    few = chosen[: given.figures]
    functions = {
        "predict": lambda: consume(loaded.predict(chosen)),
        "explain, maps": lambda: consume(loaded.explain(chosen, keep_image=False)),
        "explain, maps and image": lambda: consume(loaded.explain(chosen)),
        "explain, maps and gradient × rollout": lambda: consume(
            loaded.explain(chosen, keep_image=False, gradient=True)
        ),
        "figure": lambda: consume(each.figure().canvas.draw() for each in loaded.explain(few)),
    }
    seconds = time_in_turns(functions, loaded.device, given.repeats, warmup=1)
    per_image = {name: each / len(few if name == "figure" else chosen) for name, each in seconds.items()}
    rows = {
        name: {"ms an image": 1000 * each, "× predict": each / per_image["predict"]} for name, each in per_image.items()
    }
    size = "x".join(map(str, loaded.transform.img_size))
    setting = f"{loaded.short_name} at {size}, {loaded.precision}, {len(chosen)} images; "
    setting += describe_machine(loaded.device, next(loaded.model.parameters()).dtype)
    print(f"{setting}\n\n{table(rows, 'work')}")
    write_json(given.json, setting=setting, rows=rows)
    return 0


def consume(stream: Iterable) -> None:
    for _ in stream:
        pass


if __name__ == "__main__":
    raise SystemExit(main())
