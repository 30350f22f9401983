"""Share of an attention map inside the bounding box of the object, where a dataset has boxes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console

from dual_cross_attention.data.augmentation import CropToAspect
from dual_cross_attention.data.crops import Box
from dual_cross_attention.data.fgvc import FGVC_DATASETS
from dual_cross_attention.data.images import UnreadableImage, read_image
from dual_cross_attention.data.preprocessing import Preprocessing
from dual_cross_attention.progress import track
from dual_cross_attention.report.faithfulness import interval, sample_positions
from dual_cross_attention.report.opened_run import OpenedRun


class InsideBox(NamedTuple):
    """Shares inside the bounding box, in percent: mean, and half of its 95 % interval over images.

    Args:
        images: number of images.
        map: of the default map of the model.
        area: of a map of equal values.
    """

    images: int
    map: tuple[float, float]
    area: tuple[float, float]


def measure_inside(opened: OpenedRun, readable: np.ndarray, console: Console) -> InsideBox | None:
    """The share of the default map inside the boxes of a sample of the test images; None if they have no boxes.

    An image whose box is outside of what the model sees is left out.

    Args:
        readable: positions of the test images that can be read.

    Raises:
        InputError: the file of boxes cannot be read.
    """
    config = opened.setup.config
    read_boxes = FGVC_DATASETS[config.dataset].boxes
    boxes = read_boxes(Path(config.data_root)) if read_boxes and config.data_root else {}
    with_box = [position for position in readable.tolist() if opened.images[position] in boxes]
    chosen = [with_box[place] for place in sample_positions(len(with_box))] if with_box else []
    paths = [f"{opened.images[position]}" for position in chosen]
    found = []
    for each in track(opened.loaded.explain(paths, keep_image=False), "boxes", len(paths), console):
        if each.error:
            continue
        try:
            size = read_image(Path(each.path)).size
        except UnreadableImage:
            continue
        seen = box_in_view(boxes[Path(each.path)], size, opened.loaded.transform)
        if seen is not None:
            found.append([share_inside(each.map(), seen), share_inside(np.ones_like(each.map()), seen)])
    if not found:
        return None
    of_map, of_area = 100 * torch.tensor(found, dtype=torch.float64).T
    return InsideBox(len(found), interval(of_map), interval(of_area))


def box_in_view(box: Box, size: tuple[int, int], preprocessing: Preprocessing) -> Box | None:
    """A box as shares, 0..1, of the region that the model sees: left, top, width, height; None if it is outside.

    Args:
        box: in pixels of the image.
        size: width and height of the image.
        preprocessing: crops to the aspect ratio of its resize, if it keeps it, resizes to a fixed size and crops its
            center.
    """
    edges, kept = [], size
    if preprocessing.keep_aspect:
        kept = CropToAspect(preprocessing.resize).kept(*size[::-1])[::-1]
    for start, length, side, whole, resized, seen in zip(
        box[:2], box[2:], kept, size, preprocessing.resize[::-1], preprocessing.img_size[::-1], strict=True
    ):
        first, cut = round((whole - side) / 2), round((resized - seen) / 2)
        ends = (start - first, start - first + length)
        edges.append([min(max((edge * resized / side - cut) / seen, 0.0), 1.0) for edge in ends])
    (left, right), (top, bottom) = edges
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


def share_inside(values: np.ndarray, box: Box) -> float:
    """Share, 0..1, of the sum of a map (h, w) inside a box, which may cut patches.

    Args:
        box: left, top, width, height as shares of the map's width and height.
    """
    rows, columns = values.shape
    across, down = (
        np.clip(np.minimum(stop * count, places + 1) - np.maximum(start * count, places), 0, None)
        for start, stop, count, places in (
            (box[0], box[0] + box[2], columns, np.arange(columns)),
            (box[1], box[1] + box[3], rows, np.arange(rows)),
        )
    )
    return float(down @ values @ across / values.sum())
