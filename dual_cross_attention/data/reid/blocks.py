"""P x K batches for datasets that are too large to shuffle at once."""

from collections.abc import Iterator, Sequence

import numpy as np

from dual_cross_attention.data.reid.sampler import IdentitySampler, batches_of
from dual_cross_attention.data.samplers import EpochBatchSampler, SampleKey


class BlockIdentitySampler(EpochBatchSampler):
    """Samples P x K micro-batches as `IdentitySampler` does, block by block; a block has all images of its identities.

    The order of the blocks is seeded by seed and epoch, and each block's batches by those and its number. Only one
    block is in memory, and a batch is reached without computing the batches of the blocks before it.

    Args:
        counts: images of each identity; the dataset lists the identities in this order, each identity's images in a
            row.
        identities_per_batch: P.
        images_per_identity: K.
        seed: of the order.
        block: approximate number of images of a block; a block has at least P identities.

    Raises:
        InputError: P or K below 1, or fewer than P identities.
    """

    def __init__(
        self, counts: Sequence[int], identities_per_batch: int, images_per_identity: int, seed: int, block: int
    ):
        self.counts = np.asarray(counts, dtype=np.int64)
        self.identities_per_batch, self.images_per_identity = identities_per_batch, images_per_identity
        self.seed = seed
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])  # of each identity, and the end
        self.bounds = self._bounds(block)
        first = self._sampler(0)
        self.unit, self.smallest = first.unit, first.smallest
        groups = -(-self.counts // images_per_identity)
        sizes = [
            batches_of(groups[start:end], identities_per_batch)
            for start, end in zip(self.bounds[:-1], self.bounds[1:], strict=True)
        ]
        self.sizes = np.array(sizes)  # batches of each block
        self.num_batches = int(self.sizes.sum())

    def _bounds(self, block: int) -> np.ndarray:
        """The first identity of each block, and the end: blocks of about the same number of images."""
        total = int(self.starts[-1])
        blocks = max(1, -(-total // block))
        cuts = np.searchsorted(self.starts, np.arange(1, blocks) * total // blocks)
        kept = [0]
        for cut in cuts.tolist():
            if min(cut - kept[-1], len(self.counts) - cut) >= self.identities_per_batch:
                kept.append(cut)
        return np.array([*kept, len(self.counts)])

    def _sampler(self, block: int) -> IdentitySampler:
        own = self.counts[self.bounds[block] : self.bounds[block + 1]]
        labels = np.repeat(np.arange(len(own)), own)
        # 0 would seed as the order of the blocks is seeded; a single block gives the batches of `IdentitySampler`.
        stream = (1 + block,) if len(self.bounds) > 2 else ()
        return IdentitySampler(labels, self.identities_per_batch, self.images_per_identity, self.seed, stream)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[SampleKey]]:
        for block in np.random.default_rng((self.seed, epoch)).permutation(len(self.sizes)):
            if start >= self.sizes[block]:
                start -= self.sizes[block]
                continue
            sampler, first = self._sampler(block), int(self.starts[self.bounds[block]])
            for batch in sampler.batches(epoch, start):
                yield [key._replace(index=first + key.index) for key in batch]
            start = 0
