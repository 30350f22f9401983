"""Features of a frozen backbone, computed once for all images of a split: what `--freeze all` trains on.

Images have no random augmentation then, so what heads and GLCA read of each is the same in every epoch. Features are in
memory; where they would not fit, each step computes those of its batch.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from dual_cross_attention.data.cache import USABLE, available_memory
from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.data.samplers import SequentialBatchSampler
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.models.attention_trace import EncodedImages
from dual_cross_attention.progress import track
from dual_cross_attention.training.distributed.strategy import DistributedStrategy
from dual_cross_attention.training.oom import catch_out_of_memory
from dual_cross_attention.training.run_context import RunContext


class FeatureBatches(Batches):
    """The batches of other `Batches`, with features ("tokens", "scores") in place of images.

    Args:
        source: batches of images that are augmented alike in every epoch.
        columns: by name, a row for each image of the dataset, in its order, on the CPU.
    """

    def __init__(self, source: Batches, columns: dict[str, Tensor]):
        self.dataset, self.sampler, self.columns = source.dataset, source.sampler, columns

    def read(self, epoch: int, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
        """See `Batches.read`."""
        for keys in self.sampler.select(epoch, numbers):
            rows = torch.tensor([key.index for key in keys])
            yield {name: column[rows] for name, column in self.columns.items()} | {"unreadable": []}

    def close(self) -> None:
        """There are no workers."""


def cache_features(
    batches: Batches, title: str, strategy: DistributedStrategy, unreadable: UnreadableImages, run: RunContext
) -> Batches:
    """Computes the features of all images of a split, on every rank.

    Args:
        batches: of the split.
        title: of the progress bar.
        strategy: has the model, with its weights.
        unreadable: collects images that cannot be read.
        run: its console gets a line with the size.

    Returns:
        `FeatureBatches`; or `batches`, with a warning, where the features do not fit into memory.
    """
    model, size = strategy.task.model, len(batches.dataset)
    rows, columns = model.family.grid(model.backbone, (run.config.img_size[0], run.config.img_size[1]))
    patches = rows * columns if model.has_glca or model.read_out.reads_patches else 0
    num_bytes = 4 * size * (model.num_prefix_tokens + patches) * model.embed_dim
    needed, usable = num_bytes * strategy.world_size, USABLE * available_memory()
    if needed > usable:
        run.warn(
            f"{title}: {needed / 2**30:.2f} GiB, and {usable / 2**30:.2f} GiB may be used: they are computed anew in "
            "each step"
        )
        return batches
    was_training = model.training
    model.eval()
    columns, shortage = catch_out_of_memory(lambda: _encode_all(batches, title, strategy, unreadable, run))
    model.train(was_training)
    if columns is None:
        run.warn(f"{title}: out of memory ({shortage.reason if shortage else ''}): they are computed anew in each step")
        return batches
    run.console.print(f"{title}: {size:,} images, {num_bytes / 2**20:,.0f} MiB")
    return FeatureBatches(batches, columns)


@torch.no_grad()
def _encode_all(
    batches: Batches, title: str, strategy: DistributedStrategy, unreadable: UnreadableImages, run: RunContext
) -> dict[str, Tensor]:
    """Features, labels and the rest of the batches, a row for each image of the dataset."""
    size, batch_size = len(batches.dataset), run.config.batch_size
    in_order = Batches(batches.dataset, SequentialBatchSampler(size, batch_size), **batches.options)
    parts: dict[str, list[Tensor]] = {}
    try:
        steps = track(unreadable.watch(in_order.read(0, range(len(in_order)))), title, len(in_order), run.console)
        for batch in steps:
            with strategy.accelerator.autocast():
                encoded = strategy.task.model.encode(batch["images"].to(strategy.accelerator.device))
            for name, column in (_columns_of(encoded) | {name: batch[name] for name in _LABELS}).items():
                parts.setdefault(name, []).append(column.cpu())
    finally:
        in_order.close()
    return {name: torch.cat(columns) for name, columns in parts.items()}


_LABELS = ("labels", "indices", "valid")
"""What a batch has beside its images."""


def _columns_of(encoded: EncodedImages) -> dict[str, Tensor]:
    return {name: column for name, column in encoded._asdict().items() if column is not None}
