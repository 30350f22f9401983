"""`--dataset hf:ORG/NAME`: a dataset of the Hugging Face Hub, or a folder in place of ORG/NAME."""

import os

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

HUB = "hf:"
"""What begins the name of a dataset on the hub, as `data_root` of the dataset `HUB_DATASET`."""
HUB_DATASET = "hf"


def split_hub_name(dataset: str | None, data_root: str | None) -> tuple[str | None, str | None]:
    """hf:ORG/NAME → the dataset `HUB_DATASET` and its data_root: hf:ORG/NAME, or PATH of hf:PATH.

    A path begins with `.`, `/` or `~`, or is that of a file or folder that exists. Other names are not changed.

    Raises:
        InputError: there is nothing after hf:, or a `data_root` too.
    """
    if not isinstance(dataset, str) or not dataset.startswith(HUB):
        return dataset, data_root
    name = dataset.removeprefix(HUB)
    if not name or (data_root is not None and data_root not in (dataset, name)):
        got = f"data_root {escape(data_root)} too" if name else "nothing after hf:"
        raise InputError(f"dataset: expected hf:ORG/NAME or hf:PATH, and no data_root, got {escape(dataset)} and {got}")
    is_path = name.startswith((".", "/", "~")) or os.path.exists(name)
    return HUB_DATASET, name if is_path else dataset
