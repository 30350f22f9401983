"""The sheet of training images that a run shows at its start, as the model gets them."""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from accelerate.utils import send_to_device
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dual_cross_attention.data.dataset import collate
from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.tasks.task import Task
from dual_cross_attention.text import escape
from dual_cross_attention.training.distributed.partition import seed_micro_batch
from dual_cross_attention.training.oom import MicroBatchChunks
from dual_cross_attention.weights.pixel_stats import PixelStats

COLUMNS = 4
SMALLEST_SIDE, LARGEST_SIDE = 128, 256
"""Pixels of the longer side of an image on the sheet."""
MARGIN, LINE, LETTERS = 8, 16, 12
LONGEST_LABEL = 60
SHOWN_SHARES = 2
"""Labels of a mixed image that are named, the largest shares first, a line each."""


class SampleImages(NamedTuple):
    """Training images as the model gets them.

    Args:
        images: (n, 3, H, W) float, normalized, on the CPU.
        labels: (n,) class indices; or (n, C) shares of the classes, of mixed images.
    """

    images: Tensor
    labels: Tensor


def read_first_images(
    task: Task, batches: Batches, chunks: MicroBatchChunks, seed: int, device: torch.device, count: int
) -> SampleImages:
    """The first images of a training: those of micro-batch 0 of epoch 1, with noise and mixing.

    Reads them beside the training, and leaves torch's generators as they are.

    Args:
        task: of the training.
        batches: of the training images.
        chunks: how the training splits a micro-batch.
        seed: of the run.
        device: of the training, whose generator noise is sampled from.
        count: largest number of images.
    """
    samples = [batches.dataset[key] for key in next(batches.sampler.select(1, [0]))]
    batch = send_to_device(collate(samples), device)
    images: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"), torch.no_grad():
        for number, (chunk, fraction) in enumerate(chunks.split(batch)):
            if fraction and sum(map(len, labels)) < count:
                seed_micro_batch(seed, 1, 0, number)
                given = task.prepare(chunk)
                images.append(given["images"].float().cpu())
                labels.append(given["labels"].cpu())
    return SampleImages(torch.cat(images)[:count], torch.cat(labels)[:count])


def draw_sheet(samples: SampleImages, stats: PixelStats, classes: list[str]) -> Image.Image:
    """Images in rows of `COLUMNS`, each above its label: its class, or the classes and their shares.

    Values that a pixel cannot have, as noise makes them, are clipped.

    Args:
        stats: mean and standard deviation that the images are normalized by.
        classes: names by class index.
    """
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (stats.mean, stats.std))
    pixels = ((samples.images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    height, width = _shown_size(*pixels.shape[-2:])
    columns = min(COLUMNS, len(pixels))
    rows = -(-len(pixels) // columns)
    lines = [_label_lines(label, classes) for label in samples.labels]
    text_height = LINE * max(map(len, lines))
    cell_width, cell_height = max(width, SMALLEST_SIDE) + MARGIN, height + text_height + MARGIN
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, rows * cell_height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for number, (each, label) in enumerate(zip(pixels, lines, strict=True)):
        row, column = divmod(number, columns)
        left, top = MARGIN + column * cell_width, MARGIN + row * cell_height
        image = Image.fromarray(np.ascontiguousarray(each.permute(1, 2, 0).numpy()))
        if image.size != (width, height):
            is_enlarged = width > image.width
            image = image.resize((width, height), Image.Resampling.NEAREST if is_enlarged else Image.Resampling.BICUBIC)
        sheet.paste(image, (left, top))
        text = "\n".join(_shortened(draw, font, line, cell_width - MARGIN) for line in label)
        draw.text((left, top + height + 2), text, fill="black", font=font)
    return sheet


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes a sheet as JPEG; raises OSError if it cannot be written."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        sheet.save(temporary, format="JPEG", quality=90)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _shown_size(height: int, width: int) -> tuple[int, int]:
    longer = max(height, width)
    factor = float(-(-SMALLEST_SIDE // longer)) if longer < SMALLEST_SIDE else min(1.0, LARGEST_SIDE / longer)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _label_lines(label: Tensor, classes: list[str]) -> list[str]:
    if label.ndim == 0:
        return [escape(classes[int(label)])]
    shares, indices = label.sort(descending=True, stable=True)
    named = [(share, index) for share, index in zip(shares.tolist(), indices.tolist(), strict=True) if share > 0]
    return [f"{share:.2f} {escape(classes[index])}" for share, index in named[:SHOWN_SHARES]]


def _font() -> Any:
    # The font of matplotlib, which has Greek and Cyrillic letters too; without matplotlib's cache of fonts.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), LETTERS)


def _shortened(draw: ImageDraw.ImageDraw, font: Any, text: str, width: int) -> str:
    """The text, cut to a width in pixels."""
    text = text[:LONGEST_LABEL]
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = f"{text[:-2]}…"
    return text
