"""What a re-identification data set is: who is on each picture, and which camera took it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from dual_cross_attention.errors import InputError
from dual_cross_attention.messages import printable


@dataclass(frozen=True)
class IdentityList:
    """Pictures, as paths or as PIL images, with the identity and the camera of each.

    Args:
        pictures: where to read them, or the pictures themselves.
        identities: whole numbers from 0, as many as pictures.
        cameras: whole numbers, as many as pictures.
    """

    pictures: Sequence[Path | Image.Image]
    identities: Sequence[int]
    cameras: Sequence[int]

    def __post_init__(self):
        if not len(self.pictures) == len(self.identities) == len(self.cameras):
            raise ValueError(
                "expected an identity and a camera for each picture, got "
                f"{len(self.pictures)}, {len(self.identities)} and {len(self.cameras)}"
            )

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class ReIDData:
    """A data set for re-identification: identities to train on, and others to be found in the gallery.

    Args:
        name: the data set.
        identities: names of the training identities, by label; empty where `train` is None.
        train: pictures whose identities are labels, 0 to len(identities) - 1; None: only the test side was read.
        query: pictures to look for. Identities and cameras are numbers of the data set's own, shared with `gallery`.
        gallery: pictures to find them in. Junk is not in it; distractors are, with an identity that no query has.
        warnings: what a user should know before a run: missing pictures, files left out.

    Raises:
        InputError: a split without pictures, fewer than two training identities, or no query that could be found.
    """

    name: str
    identities: list[str]
    train: IdentityList | None
    query: IdentityList
    gallery: IdentityList
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self):
        for split, pictures in (("training", self.train), ("query", self.query), ("gallery", self.gallery)):
            if pictures is not None and not len(pictures):
                raise InputError(f"{self.name}: expected pictures in every split, but the {split} split is empty")
        if self.train is not None and set(self.train.identities) != set(range(len(self.identities))):
            raise InputError(
                f"{self.name}: expected training labels from 0 to {len(self.identities) - 1}, one for each identity"
            )
        if self.train is not None and len(self.identities) < 2:
            raise InputError(f"{self.name}: expected at least two training identities, found {self.identities}")
        self._check_queries()

    def _check_queries(self) -> None:
        """A query counts if the gallery has its identity under another camera; the protocol skips the rest."""
        seen = {*zip(self.gallery.identities, self.gallery.cameras, strict=True)}
        cameras: dict[int, set[int]] = {}
        for identity, camera in seen:
            cameras.setdefault(identity, set()).add(camera)
        alone = [
            i
            for i, (identity, camera) in enumerate(zip(self.query.identities, self.query.cameras, strict=True))
            if not cameras.get(identity, set()) - {camera}
        ]
        if not alone:
            return
        first = self.query.pictures[alone[0]]
        named = f"such as {printable(first.name)}" if isinstance(first, Path) else f"such as number {alone[0]}"
        if len(alone) == len(self.query):
            raise InputError(
                f"{self.name}: none of the {len(self.query)} queries can be found: the gallery has no picture of their "
                f"identities from another camera ({named}: identity {self.query.identities[alone[0]]}, camera "
                f"{self.query.cameras[alone[0]]})"
            )
        self.warnings.append(
            f"{len(alone)} of {len(self.query)} queries ({named}) have no match in the gallery from another camera; "
            "the protocol skips them"
        )
