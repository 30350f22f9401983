"""Open-set identification: whether a probe image shows an enrolled identity, and which; FPIR and FNIR.

Notable:
- the distance of an identity is that of its nearest gallery image. One table of these, (probes, identities), gives all
  rates: of any choice of enrolled identities and of any size of the gallery;
- what a probe may find is decided as in `retrieval`: gallery images of its own identity under its own camera and junk
  (identities below 0) are left out. Images of other identities under its camera stay, unless `cross_camera_only`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dual_cross_attention.errors import InputError
from dual_cross_attention.metrics.distances import BLOCK_SIZE, Distances, as_features, blocks
from dual_cross_attention.metrics.inputs import as_integers, as_pair
from dual_cross_attention.metrics.retrieval import Progress


@dataclass(frozen=True)
class IdentificationScores:
    """Distances that decide open-set identification at every threshold.

    A probe is identified as its nearest enrolled identity if the distance of that identity is at most the threshold;
    else it is of no enrolled identity. Rates are those of ISO/IEC 19795-1 at rank 1.

    Args:
        mated: (M,) of searches for an enrolled identity: its distance, infinite if another identity is at least as
            near.
        nonmated: (U,) of searches for an identity that is not enrolled: the distance of the nearest identity.
    """

    mated: Tensor
    nonmated: Tensor

    def fpir(self, threshold: float) -> float:
        """False-positive identification rate, 0 to 1: share of the non-mated searches that find an identity.

        NaN if there is no such search.
        """
        return _found(self.nonmated, threshold).double().mean().item()

    def fnir(self, threshold: float) -> float:
        """False-negative identification rate, 0 to 1: share of the mated searches that do not find their identity.

        NaN if there is no such search. With an infinite threshold, 1 − rank-1 accuracy.
        """
        return (~_found(self.mated, threshold)).double().mean().item()

    def threshold(self, fpir: float) -> float:
        """The largest threshold, up to rounding, whose false-positive identification rate is at most `fpir`.

        It lies midway between the last distance that is accepted and the next one, so that rounding changes nothing.

        Raises:
            InputError: `fpir` is not above 0 and at most 1, there are fewer than 1 / fpir non-mated searches, or too
                many of them have a distance of 0.
        """
        if not 0 < fpir <= 1:
            raise InputError(f"fpir: expected a rate above 0 and at most 1, got {fpir}")
        ordered = self.nonmated.double().sort().values
        accepted = math.floor(fpir * len(ordered) + 1e-9)
        if accepted < 1:
            raise InputError(
                f"fpir: a rate of {fpir:g} needs at least {math.ceil(1 / fpir)} searches for identities that are not "
                f"enrolled, got {len(ordered)}"
            )
        if accepted == len(ordered):
            return ordered[-1].item()
        first_refused = ordered[accepted].item()
        nearer = ordered[ordered < first_refused]
        if first_refused == 0:
            raise InputError(
                f"fpir: more than {fpir:g} of the searches for identities that are not enrolled find an image at "
                "distance 0: images of different identities are the same"
            )
        return (nearer[-1].item() + first_refused) / 2 if len(nearer) else first_refused / 2


@dataclass(frozen=True)
class IdentityDistances:
    """Distance of each probe to each gallery identity. Made by `identity_distances`.

    Args:
        distances: (P, I) float32 on the CPU, to the identity's nearest image; infinite if the probe may find none.
        identities: (I,) int64, in ascending order.
        own: (P,) int64: column of the probe's identity, −1 if the gallery does not have it.
    """

    distances: Tensor
    identities: Tensor
    own: Tensor

    def select(self, probes: Tensor | None = None, identities: Tensor | None = None) -> "IdentityDistances":
        """Some probes against a gallery of some identities.

        Args:
            probes: (P,) bool; None: all.
            identities: (I,) bool, the enrolled ones; None: all.

        Raises:
            InputError: none is left.
        """
        probes = torch.ones(len(self.own), dtype=torch.bool) if probes is None else probes
        identities = torch.ones(len(self.identities), dtype=torch.bool) if identities is None else identities
        if not (probes.any() and identities.any()):
            raise InputError(f"expected a probe and an identity, got {int(probes.sum())} and {int(identities.sum())}")
        columns = (identities.cumsum(0) - 1).masked_fill(~identities, -1)
        own = self.own[probes]
        own = torch.where(own < 0, own, columns[own])
        return IdentityDistances(self.distances[probes][:, identities], self.identities[identities], own)

    @property
    def own_distances(self) -> Tensor:
        """(P,) float32: distance of the probe's own identity, infinite if the probe may find no image of it."""
        found = self.distances.gather(1, self.own.clamp(min=0)[:, None]).squeeze(1)
        return found.masked_fill(self.own < 0, math.inf)

    @property
    def other_distances(self) -> Tensor:
        """(P, I) float32: `distances`, infinite for the probe's own identity."""
        others = self.distances.clone()
        has_own = self.own >= 0
        others[has_own, self.own[has_own]] = math.inf
        return others

    def scores(self) -> IdentificationScores:
        """Of all probes against all identities.

        A probe whose identity is in the gallery under its own camera only is left out, as in `retrieval_metrics`.
        """
        own, nearest = self.own_distances, self.other_distances.amin(1)
        return IdentificationScores(_accepted(own, nearest)[own.isfinite()], nearest[self.own < 0])

    def scores_by_size(self, sizes: Iterable[int], repeats: int = 50, seed: int = 0) -> dict[int, IdentificationScores]:
        """Of galleries of several sizes, which are random choices of the identities.

        At size n, each probe is searched for `repeats` times among n other identities (a non-mated search), and, if
        it may find images of its own, among that one and n − 1 others (a mated search). The galleries of a repetition
        are nested, so that a threshold for a false-positive rate shrinks with the size (but for ties).

        Args:
            sizes: numbers of enrolled identities, 1 to I − 1.
            repeats: galleries of each size.
            seed: of the choices, which do not depend on the sizes.

        Returns:
            By size; U is P · repeats, and M at most that.

        Raises:
            InputError: a size that the data does not have.
        """
        sizes = sorted(set(sizes))
        number, probes = len(self.identities), len(self.own)
        if not sizes or not 1 <= sizes[0] <= sizes[-1] < number:
            raise InputError(f"sizes: expected galleries of 1 to {number - 1} of the {number} identities, got {sizes}")
        columns, own = self.other_distances.T.contiguous(), self.own_distances
        is_mated, has_own = own.isfinite(), self.own >= 0
        needed = sorted({count for size in sizes for count in (size - 1, size)})
        found: dict[int, list[tuple[Tensor, Tensor]]] = {size: [] for size in sizes}
        generator = torch.Generator().manual_seed(seed)
        for _ in range(repeats):
            order = torch.randperm(number, generator=generator)
            place = torch.full((probes,), number)
            place[has_own] = order.argsort()[self.own[has_own]]
            nearest: dict[int, Tensor] = {}
            running, done = torch.full((probes,), math.inf), 0
            for count in needed:
                if count > done:
                    running = torch.minimum(running, columns[order[done:count]].amin(0))
                    done = count
                # Its own identity is among the first ones: one more of the others is enrolled in place of it.
                one_more = torch.minimum(running, columns[order[count]])
                nearest[count] = torch.where(place < count, one_more, running)
            for size in sizes:
                found[size].append((_accepted(own, nearest[size - 1])[is_mated], nearest[size]))
        return {
            size: IdentificationScores(*(torch.cat(part) for part in zip(*each, strict=True)))
            for size, each in found.items()
        }


def identity_distances(
    probe,
    gallery,
    probe_ids,
    gallery_ids,
    probe_cameras=None,
    gallery_cameras=None,
    distance: str = "euclidean",
    *,
    probe_files=None,
    gallery_files=None,
    cross_camera_only: bool = False,
    block_size: int = BLOCK_SIZE,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> IdentityDistances:
    """Distance of each probe to the nearest image of each gallery identity.

    Args:
        probe: features (P, D), a tensor, an array, or a list of rows.
        gallery: features (G, D).
        probe_ids: P integers, likewise gallery_ids; gallery images of identities below 0 are left out.
        probe_cameras, gallery_cameras: P and G integers; None: there are no cameras, and a probe finds all images.
        distance: "euclidean" (not squared) or "cosine", 1 − cos, as of `rank_gallery`.
        probe_files, gallery_files: P and G integers that number the image files; a probe does not find its own file.
            With one set on both sides, this is leave-one-out. None: no gallery image is a probe's own file.
        cross_camera_only: a probe finds no gallery image under its own camera, of other identities neither.
        block_size, device, progress: as of `retrieval_metrics`.

    Raises:
        InputError: features, identities or cameras that cannot be compared, or a gallery of junk only.
    """
    probe, gallery = as_features(probe, gallery, device)
    probe_ids = as_integers(probe_ids, "probe_ids", probe)
    gallery_ids = as_integers(gallery_ids, "gallery_ids", gallery)
    cameras = as_pair(probe_cameras, gallery_cameras, "cameras", probe, gallery)
    files = as_pair(probe_files, gallery_files, "files", probe, gallery)
    valid = gallery_ids >= 0
    if not valid.any():
        raise InputError("gallery_ids: expected an identity of 0 or more, got junk only")
    gallery, gallery_ids = gallery[valid], gallery_ids[valid]
    identities, column = gallery_ids.unique(return_inverse=True)
    measured = Distances(probe, gallery, distance, probe.device)
    rows: list[Tensor] = []
    for block in (progress or iter)(blocks(len(probe), measured.width, block_size)):
        found = measured(block)
        if cameras:
            hidden = cameras[0][block, None] == cameras[1][valid]
            if not cross_camera_only:
                hidden &= probe_ids[block, None] == gallery_ids
            found.masked_fill_(hidden, math.inf)
        if files:
            found.masked_fill_(files[0][block, None] == files[1][valid], math.inf)
        nearest = found.new_full((len(found), len(identities)), math.inf)
        rows.append(nearest.scatter_reduce_(1, column.expand_as(found), found, "amin").cpu())
    table = torch.cat(rows)
    place = torch.searchsorted(identities, probe_ids).clamp(max=len(identities) - 1)
    own = torch.where(identities[place] == probe_ids, place, -1)
    return IdentityDistances(table if distance == "cosine" else table.sqrt_(), identities.cpu(), own.cpu())


def _found(distances: Tensor, threshold: float) -> Tensor:
    return distances.isfinite() & (distances.double() <= threshold)


def _accepted(own: Tensor, nearest: Tensor) -> Tensor:
    """Distances of the right identity, infinite where another one is at least as near."""
    return torch.where(own < nearest, own, math.inf)
