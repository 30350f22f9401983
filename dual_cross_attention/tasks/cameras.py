"""Cameras and views of images as indices of their side information embeddings."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dual_cross_attention.data.names import composed
from dual_cross_attention.data.reid.identities import IdentityList, ReIDData
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.side_information import UNKNOWN
from dual_cross_attention.text import escape, few


class CameraIndices:
    """Camera (view, or pair of both) of each image by its position, as an index of an embedding, or `UNKNOWN`.

    Args:
        train: (training images,) int64; None: there is no training.
        test: (test images,) int64; None: all are unknown.
        dropout: probability that the camera of a training image counts as unknown, sampled from torch's generator.
    """

    def __init__(self, train: Tensor | None, test: Tensor | None, dropout: float):
        self.train, self.test, self.dropout = train, test, dropout

    def of_training(self, positions: Tensor) -> Tensor:
        """(B,) positions of training images → (B,) cameras, some of them dropped."""
        self.train = self.train.to(positions.device)
        cameras = self.train[positions]
        dropped = torch.rand(cameras.shape, device=cameras.device) < self.dropout
        return cameras.masked_fill(dropped, UNKNOWN)

    def of_test(self, positions: Tensor) -> Tensor:
        """(B,) positions of test images → (B,) cameras."""
        self.test = self.test.to(positions.device)
        return self.test[positions]


def training_cameras(data: ReIDData, chosen: Sequence[str]) -> list[str]:
    """Names of the cameras that get an embedding.

    Args:
        data: with training images.
        chosen: some of their cameras; empty: all of them.

    Raises:
        InputError: the training images have no cameras, or not a chosen one.
    """
    if data.train.cameras is None:
        raise InputError(
            f"sie camera: the training images of {data.name} have no cameras: take --sie none, or name their cameras"
        )
    there = [name for name in data.names_of_cameras(data.train)[0] if name]
    if not there:
        raise InputError(f"sie camera: no training image of {data.name} has a camera: take --sie none")
    return _chosen("camera", there, chosen)


def camera_indices(data: ReIDData, side: IdentityList, names: Sequence[str]) -> Tensor:
    """The cameras of a split as indices of `names`, by their names: (images,) int64; `UNKNOWN` where it is not there.

    Args:
        data: the dataset of the split.
        side: the split.
        names: cameras with an embedding, in its order.
    """
    if side.cameras is None:
        return torch.full((len(side),), UNKNOWN)
    there, of_image = data.names_of_cameras(side)
    return name_indices(there, names)[of_image]


def training_views(views: Sequence[str], source: Path, chosen: Sequence[str]) -> list[str]:
    """Names of the views that get an embedding, sorted.

    Args:
        views: of the training images, "" of images without one.
        source: the file that lists them, for errors.
        chosen: some of them; empty: all.

    Raises:
        InputError: no training image has a view, or none has a chosen one.
    """
    there = sorted({*views} - {""})
    if not there:
        raise InputError(f"sie view: {escape(source)} lists no view of any of the {len(views):,} training images")
    return _chosen("view", there, chosen)


def _chosen(kind: str, there: list[str], chosen: Sequence[str]) -> list[str]:
    """The chosen cameras or views, each of which has to be there; all of them if none is chosen."""
    names = [composed(name) for name in chosen]
    if absent := [name for name in names if name not in there]:
        raise InputError(f"sie_{kind}s: no training image has the {kind} {few(absent)}: there are {few(there)}")
    return names or there


def name_indices(found: Sequence[str], names: Sequence[str]) -> Tensor:
    """Cameras or views by name → (N,) int64, indices of `names`; `UNKNOWN` where a name is not there."""
    places = {name: place for place, name in enumerate(names)}
    return torch.tensor([places.get(name, UNKNOWN) for name in found], dtype=torch.int64)


def pair_indices(cameras: Tensor, views: Tensor, num_views: int) -> Tensor:
    """Index of a camera and a view together, as in TransReID: camera · V + view; `UNKNOWN` where one of them is.

    Args:
        cameras, views: (images,) int64, from 0, or `UNKNOWN`.
        num_views: V.
    """
    is_unknown = (cameras == UNKNOWN) | (views == UNKNOWN)
    return (cameras * num_views + views).masked_fill(is_unknown, UNKNOWN)
