"""VeRi-776 (vehicles) in its official layout."""

import os
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from dual_cross_attention.data.listed_paths import listed_path
from dual_cross_attention.data.reid.identities import ReIDData
from dual_cross_attention.data.reid.leftovers import leftovers
from dual_cross_attention.data.reid.records import Sighting, parsed
from dual_cross_attention.data.reid.release import (
    Counts,
    Release,
    files_in,
    lines_of,
    on_disk,
    released_data,
    split_folder,
)
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape
from dual_cross_attention.untrusted_files import read_label_bytes

VERI776 = Release(
    "veri776",
    "VeRi/ with image_train/, image_query/ and image_test/ (name_train.txt, name_query.txt, name_test.txt, "
    "train_label.xml and test_label.xml are read where they are there)",
    "https://github.com/JDAI-CV/VeRidataset",
    ("VeRi",),
    "identity and camera, as 0001_c001_00016450_0.jpg has",
    {"training": Counts(37_778, 576), "query": Counts(1_678, 200), "gallery": Counts(11_579, 200)},
    taken_from='the number after "c" in a file name, or the cameraID of an XML file',
)
NAME = re.compile(r"(\d+)_c(\d+)_")
SPLITS = {
    "training": ("image_train", "name_train.txt", "train_label.xml"),
    "query": ("image_query", "name_query.txt", "test_label.xml"),
    "gallery": ("image_test", "name_test.txt", "test_label.xml"),
}


def load_veri776(data_root: Path, train: bool = True) -> ReIDData:
    """Loads VeRi-776. A split has the images of its name list, or all images of its folder if there is no list.

    Identity and camera come from the XML file, or from the file name of an image that it does not list:
    0001_c001_00016450_0.jpg is identity 1 under camera 1. From https://github.com/JDAI-CV/VeRidataset.

    Args:
        data_root: the folder VeRi, or the one that holds it.
        train: read the training images too.

    Raises:
        InputError: the layout is another one, none of a split's images is there or has such a name, an XML file
            cannot be read, or it contradicts the name of an image.
    """
    home = VERI776.found_in(data_root, SPLITS["gallery"][0])
    warnings = VERI776.inner_folder_lines(home, data_root)
    splits = {split: _read(home, split, warnings) for split in SPLITS if train or split != "training"}
    return released_data(VERI776, splits, warnings)


def _read(home: Path, split: str, warnings: list[str]) -> list[Sighting]:
    folder, list_file, xml_file = (home / name for name in SPLITS[split])
    folder = split_folder(VERI776, folder, warnings)
    if os.path.lexists(list_file):
        named = [_listed(folder, list_file, *line) for line in lines_of(VERI776, list_file)]
        if twice := [file for file, count in Counter(named).items() if count > 1]:
            raise InputError(
                f"veri776: {list_file}: expected each image once, but {escape(twice[0].name)} is listed again"
            )
        files, where = on_disk(VERI776, list_file, named, warnings), list_file
        warnings += leftovers(f"veri776: {folder}", folder, named, 0, list_file.name)
    else:
        files, where = files_in(VERI776, folder), folder
        warnings += leftovers(f"veri776: {folder}", folder, files, 0)
    labels = _read_xml(xml_file) if os.path.lexists(xml_file) else {}

    def sighting(file: Path) -> Sighting | None:
        match = NAME.match(file.name)
        by_name, by_xml = match and match.groups(), labels.get(file.name)
        if by_name and by_xml and [*map(int, by_name)] != [*map(int, by_xml)]:
            raise InputError(
                f"veri776: {xml_file} says vehicle {by_xml[0]} and camera {by_xml[1]} of {escape(file.name)}, "
                "which is not what its name says"
            )
        found = by_name or by_xml
        return Sighting(file, *found) if found else None

    return parsed(files, sighting, f"veri776: {where}", VERI776.naming, warnings)


def _listed(folder: Path, list_file: Path, number: int, line: str) -> Path:
    return listed_path(folder, line, f"veri776: {list_file}, line {number}")


def _read_xml(path: Path) -> dict[str, tuple[str, str]]:
    """{imageName: (vehicleID, the digits of cameraID)}."""
    labels = {}
    for item in _xml_root(path).iter("Item"):
        name, vehicle, camera = (item.get(key, "") for key in ("imageName", "vehicleID", "cameraID"))
        if not (name and re.fullmatch(r"\d{1,18}", vehicle) and re.fullmatch(r"c\d{1,18}", camera)):
            raise InputError(
                f'veri776: {path}: expected Items like imageName="0001_c001_00016450_0.jpg" vehicleID="0001" '
                f'cameraID="c001", got {item.attrib!r:.200}'
            )
        labels[name] = (vehicle, camera[1:])
    return labels


def _xml_root(path: Path) -> ElementTree.Element:
    raw = read_label_bytes(path, "veri776")
    declared = re.match(rb"\s*<\?xml[^>]*?encoding=[\"']([\w.-]+)", raw)
    try:
        # Decoded here: the files declare gb2312, and the parser rejects multi-byte encodings.
        encoding = declared[1].decode().lower() if declared else "utf-8-sig"
        text = raw.decode("gb18030" if encoding == "gb2312" else encoding)  # a superset, with the rarer characters
        if "<!DOCTYPE" in text:
            raise InputError(f"veri776: {path} has a <!DOCTYPE>, which is not read: it can name other files")
        return ElementTree.fromstring(text)
    # Unknown encodings raise ValueError subclasses; deep nesting raises RecursionError.
    except (LookupError, RecursionError, ValueError, ElementTree.ParseError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"veri776: {path} cannot be read as XML: {error}") from error
