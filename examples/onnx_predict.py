"""Classifies images with a file of `dcal export`; needs onnxruntime, NumPy and Pillow alone.

python onnx_predict.py MODEL.onnx IMAGE...

Probabilities are those of the softmax, without calibration. Pillow resizes slightly differently from torchvision, which
the training used: probabilities differ in the third digit or so from those of `dcal predict`.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def read_pixels(path: str, preprocessing: dict) -> np.ndarray:
    """(3, H, W) float32, normalized."""
    (resize_height, resize_width), (height, width) = preprocessing["resize"], preprocessing["img_size"]
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    if preprocessing.get("keep_aspect"):
        scale = min(image.width / resize_width, image.height / resize_height)
        size = round(scale * resize_width), round(scale * resize_height)
        corner = [round((side - kept) / 2) for side, kept in zip(image.size, size, strict=True)]
        image = image.crop((*corner, corner[0] + size[0], corner[1] + size[1]))
    image = image.resize((resize_width, resize_height), FILTERS[preprocessing["interpolation"]])
    top, left = round((resize_height - height) / 2), round((resize_width - width) / 2)
    pixels = np.asarray(image, dtype=np.float32)[top : top + height, left : left + width] / 255
    normalized = (pixels - np.float32(preprocessing["mean"])) / np.float32(preprocessing["std"])
    return normalized.transpose(2, 0, 1)


def main(model: str, paths: list[str]) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    labels, preprocessing = json.loads(metadata["classes"]), json.loads(metadata["preprocessing"])
    images = np.stack([read_pixels(path, preprocessing) for path in paths])
    (probabilities,) = session.run(["probabilities"], {"images": images})
    for path, row in zip(paths, probabilities, strict=True):
        best = np.argsort(-row)[:3]
        print(path, ", ".join(f"{labels[index]} {100 * row[index]:.1f} %" for index in best))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
