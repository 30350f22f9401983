"""The fine-grained datasets by name."""

from pathlib import Path
from typing import Any

from dual_cross_attention.configs.hub_names import split_hub_name
from dual_cross_attention.data.fgvc import csv_file, cub, folder, hf, lists, shards, torchvision_sets
from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.registry import DatasetEntry, load_by_name, names_where
from dual_cross_attention.data.synthetic.birds import draw_toy
from dual_cross_attention.errors import InputError

__all__ = ["FGVC_DATASETS", "FineGrainedData", "draw_toy", "load_fgvc"]

FGVC_DATASETS: dict[str, DatasetEntry[FineGrainedData]] = {
    "toy": DatasetEntry(
        "synthetic birds, whose species differ only in small parts",
        draw_toy,
        no_download="it is synthetic, not downloaded",
    ),
    "cub": DatasetEntry(
        "CUB-200-2011: 200 species of birds",
        cub.load_cub,
        cub.LAYOUT,
        cub.SOURCE,
        archive=cub.ARCHIVE,
        find=cub.find_cub,
        boxes=cub.read_boxes,
    ),
    "cars": DatasetEntry(
        "Stanford Cars: 196 models of cars",
        torchvision_sets.load_cars,
        torchvision_sets.CARS_LAYOUT,
        torchvision_sets.CARS_SOURCE,
        no_download="its official source is gone",
        find=torchvision_sets.find_cars,
    ),
    "aircraft": DatasetEntry(
        "FGVC-Aircraft: 100 variants of aircraft",
        torchvision_sets.load_aircraft,
        torchvision_sets.AIRCRAFT_LAYOUT,
        torchvision_sets.AIRCRAFT_SOURCE,
        archive=torchvision_sets.AIRCRAFT_ARCHIVE,
        find=torchvision_sets.find_aircraft,
    ),
    "folder": DatasetEntry(
        "your own images, one folder per class",
        folder.load_folder,
        folder.LAYOUT,
        folder.SOURCE,
        no_download="these are your own images",
        has_val_or_test=True,
        takes_val_fraction=True,
        may_have_other_classes=True,
    ),
    "lists": DatasetEntry(
        "images in list files, such as Grocery Store's",
        lists.load_lists,
        lists.LAYOUT,
        lists.SOURCE,
        no_download="these are your own images",
        has_val_or_test=True,
        may_have_other_classes=True,
    ),
    "csv": DatasetEntry(
        "images that one CSV file lists",
        csv_file.load_csv,
        csv_file.LAYOUT,
        csv_file.SOURCE,
        no_download="these are your own images",
        by_pattern=True,
        has_val_or_test=True,
        takes_val_fraction=True,
        has_columns=True,
        may_have_other_classes=True,
    ),
    "hf": DatasetEntry(
        "Parquet, Arrow, image folders and hf:ORG/NAME of the Hugging Face Hub, by the library datasets",
        hf.load_hf,
        hf.LAYOUT,
        hf.SOURCE,
        no_download="the library datasets downloads --dataset hf:ORG/NAME by itself",
        by_pattern=True,
        has_val_or_test=True,
        takes_val_fraction=True,
        has_columns=True,
        has_hub_names=True,
    ),
    "shards": DatasetEntry(
        "images in tar archives, from dcal shard or any other writer of WebDataset's convention",
        shards.load_shards,
        shards.LAYOUT,
        shards.SOURCE,
        no_download="archives are written, by dcal shard for instance",
        by_pattern=True,
        has_val_or_test=True,
    ),
}


def load_fgvc(
    name: str,
    data_root: str | Path | None,
    download: bool = False,
    train: bool = True,
    split: str | None = None,
    val_fraction: float | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> FineGrainedData:
    """A fine-grained dataset by its name.

    Args:
        name, data_root, download: see `load_by_name`.
        train: False: for evaluation. Training images are not read and need not exist where the entry says
            `has_val_or_test`.
        split: the images to test on: "val" or "test"; None: val if it exists, else test, where the entry says
            `has_val_or_test`. The other datasets have one test split, "test".
        val_fraction: of images without a split, where the entry says `takes_val_fraction`: the share of validation
            images, see `choose_validation`.
        image_column, label_column: columns of images and classes, where the entry says `has_columns`; None: found by
            their names.

    Raises:
        InputError: as `load_by_name`; a split that the dataset does not have; `val_fraction` or a column of another
            dataset.
    """
    name, data_root = split_hub_name(name, None if data_root is None else f"{data_root}")
    options: dict[str, Any] = {}
    if entry := FGVC_DATASETS.get(name):
        if entry.has_val_or_test:
            options |= {"train": train, "split": split}
        elif split == "val":
            several = " and ".join(names_where(FGVC_DATASETS, "has_val_or_test"))
            raise InputError(f"--split val: {name} has one test split, test; {several} may have val and test")
        if val_fraction is not None:
            if not entry.takes_val_fraction:
                unsplit = " or ".join(names_where(FGVC_DATASETS, "takes_val_fraction"))
                raise InputError(f"--val_fraction splits images of --dataset {unsplit}; {name} has a split of its own")
            options["val_fraction"] = val_fraction
        for option, column in (("image_column", image_column), ("label_column", label_column)):
            if column is not None:
                if not entry.has_columns:
                    tables = " or ".join(names_where(FGVC_DATASETS, "has_columns"))
                    raise InputError(f"--{option} names a column of --dataset {tables}; {name} has none")
                options[option] = column
    return load_by_name(FGVC_DATASETS, name, data_root, download, **options)
