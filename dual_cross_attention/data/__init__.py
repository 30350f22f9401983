"""Data sets, and how their pictures reach the model."""

from dual_cross_attention.data.fgvc import FGVC_DATASETS, FineGrainedData, draw_toy, load_fgvc
from dual_cross_attention.data.loaders import build_loaders
from dual_cross_attention.data.pictures import (
    UNREADABLE,
    PictureDataset,
    PictureList,
    UnreadablePicture,
    collate,
    read_picture,
)
from dual_cross_attention.data.transforms import test_transform, train_transform

__all__ = [
    "FGVC_DATASETS",
    "UNREADABLE",
    "FineGrainedData",
    "PictureDataset",
    "PictureList",
    "UnreadablePicture",
    "build_loaders",
    "collate",
    "draw_toy",
    "load_fgvc",
    "read_picture",
    "test_transform",
    "train_transform",
]
