"""What timm's `inference.py` does, reduced to this comparison: a folder of images through a timm model, top 5 as CSV.

    python -m benchmarks.timm_inference FOLDER --checkpoint FILE --output FILE.csv

Like the script: timm's create_model, create_dataset and create_loader with 2 workers and batches of 256, the top
classes of each image collected and written at the end. Nothing of this project is imported.
"""

import argparse
import csv
import sys

import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import create_model


def main() -> int:
    """Classify, then write the rows; the first batch is announced on standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--backbone", default="deit_tiny_patch16_224")
    parser.add_argument("--num_classes", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--num_workers", type=int, default=2)
    given = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = create_model(given.backbone, num_classes=given.num_classes, checkpoint_path=given.checkpoint)
    model = model.to(device).eval()
    dataset = create_dataset("", given.folder)
    config = resolve_data_config({}, model=model)
    loader = create_loader(
        dataset,
        batch_size=given.batch_size,
        use_prefetcher=device.type == "cuda",
        num_workers=given.num_workers,
        device=device,
        **{name: config[name] for name in ("input_size", "interpolation", "mean", "std", "crop_pct")},
    )
    values, classes = [], []
    with torch.inference_mode():
        for images, _ in loader:
            found = model(images.to(device)).softmax(-1).topk(5)
            values.append(found.values.cpu())
            classes.append(found.indices.cpu())
            if len(values) == 1:
                print("first", flush=True)
    with open(given.output, "w", newline="") as file:
        writer = csv.writer(file)
        names = dataset.filenames(basename=True)
        for name, value, index in zip(names, torch.cat(values).tolist(), torch.cat(classes).tolist(), strict=True):
            writer.writerow([name, *index, *value])
    return 0


if __name__ == "__main__":
    sys.exit(main())
