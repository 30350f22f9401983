"""Datasets, data loaders and transforms."""

from typing import Any

from dual_cross_attention.data.dataset import ImageDataset, collate
from dual_cross_attention.data.fgvc import FGVC_DATASETS, FineGrainedData, draw_toy, load_fgvc
from dual_cross_attention.data.images import ImageList, UnreadableImage, read_image
from dual_cross_attention.data.loaders import test_loader, train_loader
from dual_cross_attention.data.reid import REID_DATASETS, load_reid
from dual_cross_attention.data.reid.identities import IdentityList, ReIDData
from dual_cross_attention.data.reid.sampler import IdentitySampler
from dual_cross_attention.data.transforms import reid_train_transform, test_transform, train_transform
from dual_cross_attention.deprecation import renamed

__all__ = [
    "FGVC_DATASETS",
    "REID_DATASETS",
    "FineGrainedData",
    "IdentityList",
    "IdentitySampler",
    "ImageDataset",
    "ImageList",
    "ReIDData",
    "UnreadableImage",
    "collate",
    "draw_toy",
    "load_fgvc",
    "load_reid",
    "read_image",
    "reid_train_transform",
    "test_loader",
    "test_transform",
    "train_loader",
    "train_transform",
]

_RENAMED = {
    "PictureDataset": "ImageDataset",
    "PictureList": "ImageList",
    "UnreadablePicture": "UnreadableImage",
    "read_picture": "read_image",
}


def __getattr__(name: str) -> Any:
    return renamed(__name__, name, _RENAMED)
