"""Re-identification datasets: images with an identity each, and a camera if there are any."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from dual_cross_attention.data.concat_sequence import ConcatSequence
from dual_cross_attention.data.images import ImageSource
from dual_cross_attention.data.labels import distinct
from dual_cross_attention.data.names import composed
from dual_cross_attention.data.reid.cameras import Cameras, CameraSource, image_name
from dual_cross_attention.data.reid.own_files import has_other_file, number_files
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape


@dataclass(frozen=True)
class IdentityList:
    """Images with an identity each, and a camera if there are any.

    Args:
        images: image files, archive members, or PIL images.
        identities: (images,) integers from 0.
        cameras: (images,) integers; None: there are none.
        block: number of images that are shuffled at a time, see `BlockIdentitySampler`, which expects each identity's
            images in a row; None: all, in any order.
    """

    images: Sequence[ImageSource]
    identities: Sequence[int]
    cameras: Sequence[int] | None = None
    block: int | None = None

    def __post_init__(self):
        cameras = len(self.images) if self.cameras is None else len(self.cameras)
        if not len(self.images) == len(self.identities) == cameras:
            raise ValueError(
                "expected an identity and a camera for each image, got "
                f"{len(self.images)}, {len(self.identities)} and {cameras}"
            )

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ReIDData:
    """A dataset for re-identification: training identities, and query images to match against gallery images.

    Args:
        name: the dataset.
        identities: names of the training identities, by label; empty where `train` is None.
        train: images whose identities are labels, 0 to len(identities) - 1; None: only the test side was read.
        query: query images. Identities and cameras are numbers of the dataset's own, shared with `gallery`.
        gallery: gallery images, without junk; distractors have an identity that no query has.
        warnings: what a user should know before a run: missing images, files left out.
        notes: how the dataset was read, where that was a choice; a line on the cameras is added.
        camera_source: where cameras come from; None: there is nothing to say, as of synthetic images.
        distractors: the identity of gallery images that show no query identity, but various others; None: there are
            none, or each has an identity of its own.
        same_numbers: whether the identity numbers of query and gallery are names of training identities as well.
        leave_one_out: the queries are the gallery too, `gallery` is `query`: each image is searched for among all
            others.
        train_camera_names: names of the cameras of the training images by number, which may be other numbers than those
            of query and gallery; None: numbers are their names.

    Without cameras, a query ignores gallery images of its own file.

    Raises:
        InputError: a split without images, fewer than two training identities, or no query that could be found.
    """

    name: str
    identities: list[str]
    train: IdentityList | None
    query: IdentityList
    gallery: IdentityList
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    camera_source: CameraSource | None = None
    distractors: int | None = None
    same_numbers: bool = False
    leave_one_out: bool = False
    train_camera_names: Sequence[str] | None = None

    def __post_init__(self):
        for split, images in (("training", self.train), ("query", self.query), ("gallery", self.gallery)):
            if images is not None and not len(images):
                raise InputError(f"{self.name}: expected images in every split, but the {split} split is empty")
        labels = np.arange(len(self.identities))
        if self.train is not None and not np.array_equal(distinct(self.train.identities), labels):
            raise InputError(
                f"{self.name}: expected training labels from 0 to {len(self.identities) - 1}, one for each identity"
            )
        if self.train is not None and len(self.identities) < 2:
            raise InputError(f"{self.name}: expected at least two training identities, found {self.identities}")
        if (self.query.cameras is None) != (self.gallery.cameras is None):
            raise ValueError("expected cameras of both query and gallery, or of neither")
        self._check_queries()
        self._look_at_cameras()

    @property
    def test_images(self) -> Sequence[ImageSource]:
        """Those of the queries, then of the gallery; with leave-one-out, each once."""
        return ConcatSequence(*(side.images for side in self._sides))

    @cached_property
    def test_files(self) -> np.ndarray | None:
        """(test images,) int64: numbers of their files, which decide what a query ignores; None: cameras decide."""
        return number_files(self.test_images) if self.leave_one_out or self.query.cameras is None else None

    def names_of_cameras(self, side: IdentityList) -> tuple[list[str], np.ndarray]:
        """The cameras of a split by name.

        Args:
            side: one of the splits, with cameras.

        Returns:
            Their names, in the order of their numbers, "" of images without one; and (images,) int64, which of them
            each image has.
        """
        names = self.camera_source and self.camera_source.cameras
        if side is self.train:
            names = self.train_camera_names
        numbers, of_image = np.unique(_numbers(side.cameras), return_inverse=True)
        found = [f"{number}" if names is None else composed(names[number]) for number in numbers.tolist()]
        return found, of_image.reshape(-1)

    def train_cameras_as_in_test(self) -> dict[int, int]:
        """Cameras of training images → numbers of these cameras in query and gallery; of others, further numbers."""
        if self.train is None or self.train.cameras is None:
            return {}
        numbers = distinct(self.train.cameras).tolist()
        tested = self.camera_source and self.camera_source.cameras
        if self.train_camera_names is None or tested is None:
            return {number: number for number in numbers}
        places = {composed(name): place for place, name in enumerate(tested)}
        return {number: places.setdefault(composed(self.train_camera_names[number]), len(places)) for number in numbers}

    @property
    def _sides(self) -> tuple[IdentityList, ...]:
        return (self.query,) if self.leave_one_out else (self.query, self.gallery)

    def training_identities(self, trained: Iterable[str]) -> set[int]:
        """The identities of query and gallery that are training identities too, by their names.

        Args:
            trained: names of training identities. Nothing is known where training and test are numbered apart.
        """
        tested = {*distinct(self.query.identities).tolist(), *distinct(self.gallery.identities).tolist()}
        tested -= {self.distractors}
        names = self.camera_source and self.camera_source.identities
        if names is not None:
            known = {composed(name) for name in trained}
            return {number for number in tested if composed(names[number]) in known}
        if not self.same_numbers:
            return set()
        known = {name.lstrip("0") or "0" for name in trained}
        return {number for number in tested if f"{number}" in known}

    def _check_queries(self) -> None:
        """Checks that some query has its identity in the gallery under another camera; the protocol skips other
        queries."""
        found = self._is_found_without_cameras() if self.query.cameras is None else self._is_found_across_cameras()
        alone = np.flatnonzero(~found)
        if len(alone) == len(self.query):
            raise InputError(self._unfindable(int(alone[0])))
        if len(alone):
            first = self.query.images[int(alone[0])]
            shown = f"number {alone[0]}" if isinstance(first, Image.Image) else escape(first.name)
            if self.leave_one_out and self.query.cameras is None:
                count = len(np.unique(_numbers(self.query.identities)[alone]))
                self.warnings.append(
                    f"{count:,} test identities have one image file only (such as {shown}): the protocol leaves them "
                    "out as queries, and keeps them in the gallery"
                )
                return
            what = "from another camera" if self.query.cameras is not None else "in another file"
            self.warnings.append(
                f"{len(alone)} of {len(self.query)} queries (such as {shown}) have no match in the gallery {what}; "
                "the protocol skips them"
            )

    def _is_found_without_cameras(self) -> np.ndarray:
        """(Q,) bool: whether the gallery has another file of the query's identity."""
        files, queries = self.test_files, len(self.query)
        gallery_files = files if self.leave_one_out else files[queries:]
        identities = (_numbers(side.identities) for side in (self.query, self.gallery))
        return has_other_file(*identities, files[:queries], gallery_files)

    def _is_found_across_cameras(self) -> np.ndarray:
        """(Q,) bool: whether the gallery has the query's identity under another camera."""
        there, of_identity = np.unique(_numbers(self.gallery.identities), return_inverse=True)
        # An identity has been seen by another camera if the lowest or the highest of its cameras is another one.
        lowest, highest = np.full(len(there), np.iinfo(np.int64).max), np.full(len(there), np.iinfo(np.int64).min)
        np.minimum.at(lowest, of_identity, _numbers(self.gallery.cameras))
        np.maximum.at(highest, of_identity, _numbers(self.gallery.cameras))
        wanted, cameras = _numbers(self.query.identities), _numbers(self.query.cameras)
        place = np.searchsorted(there, wanted).clip(max=len(there) - 1)
        return (there[place] == wanted) & ((lowest[place] != cameras) | (highest[place] != cameras))

    def _unfindable(self, first: int) -> str:
        """Says why no query has a match, with an example."""
        source = self.camera_source or CameraSource("the numbers given")
        identity = int(self.query.identities[first])
        if self.query.cameras is None:
            return (
                f"{self.name}: none of the {len(self.query)} queries can be found: the gallery has no other file of "
                f"their identities (such as {image_name(self.query.images, first)}: identity "
                f"{source.identity(identity)}); give two images or more of an identity, under the same name of it"
            )
        camera = int(self.query.cameras[first])
        return (
            f"{self.name}: none of the {len(self.query)} queries can be found: the gallery has no image of their "
            f"identities from another camera (such as {image_name(self.query.images, first)}: identity "
            f"{source.identity(identity)}, camera {source.camera(camera)}); {self._cameras(source).list_all()}"
        )

    def _cameras(self, source: CameraSource) -> Cameras:
        """Concatenates the values of query and gallery."""
        return Cameras(source, self.test_images, np.concatenate([_numbers(side.cameras) for side in self._sides]))

    def _look_at_cameras(self) -> None:
        if self.camera_source is not None and self.query.cameras is not None:
            cameras = self._cameras(self.camera_source)
            identities = np.concatenate([_numbers(side.identities) for side in self._sides])
            self.notes.append(cameras.describe())
            self.warnings.extend(cameras.warnings(self.name, identities))


def _numbers(numbers: Sequence[int]) -> np.ndarray:
    return np.asarray(numbers, dtype=np.int64)
