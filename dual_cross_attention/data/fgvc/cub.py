"""Caltech-UCSD Birds-200-2011 in its official layout, with any number of its classes."""

from pathlib import Path

from dual_cross_attention.data.boxes import parse_box
from dual_cross_attention.data.crops import Box
from dual_cross_attention.data.download import Archive
from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.folders import inner_folder_lines, own_folder, undoubled, what_is_in
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.listing import not_listed_warnings
from dual_cross_attention.data.names import composed
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape
from dual_cross_attention.untrusted_files import inside, read_text

NAME = "CUB_200_2011"
LAYOUT = "CUB_200_2011/ with images/, images.txt, image_class_labels.txt, train_test_split.txt and classes.txt"
SOURCE = "https://www.vision.caltech.edu/datasets/cub_200_2011/ or by dcal download cub (1.2 GB)"
ARCHIVE = Archive(
    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
    "97eceeb196236b17998738112f37df78",
    1_150_585_339,
    NAME,
    ("images", "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"),
)


def find_cub(folder: Path) -> Path | None:
    """Finds the folder CUB_200_2011 in or below a folder; None if it does not exist."""
    return own_folder(folder, NAME, "images.txt", wrapped=False)


def load_cub(data_root: Path) -> FineGrainedData:
    """Loads CUB with the official class names ("001.Black_footed_Albatross"), images in the order of images.txt.

    Args:
        data_root: the folder CUB_200_2011, or the one that holds it.

    Raises:
        InputError: the layout is another one, or its files disagree.
    """
    folder = own_folder(data_root, NAME, "images.txt")
    if folder is None:
        raise InputError(f"cub: expected {LAYOUT} at {data_root}, but {what_is_in(data_root)}; get it from {SOURCE}")
    if not (folder / "images").is_dir():
        raise InputError(f"cub: expected the folder {folder / 'images'}, but it does not exist; get it from {SOURCE}")
    classes = _read_table(folder / "classes.txt")
    paths = _read_table(folder / "images.txt")
    labels = _read_table(folder / "image_class_labels.txt", allowed=classes.keys(), what="a class of classes.txt")
    is_training = _read_table(folder / "train_test_split.txt", allowed={"0", "1"}, what="1 (training) or 0 (test)")
    for name, table in (("image_class_labels.txt", labels), ("train_test_split.txt", is_training)):
        if table.keys() != paths.keys():
            odd = min(table.keys() ^ paths.keys())
            raise InputError(
                f"cub: expected the same images in {folder / 'images.txt'} and {name}, but they list {len(paths)} and "
                f"{len(table)}, and image {escape(odd)} is in one of them only"
            )
    index = {class_id: position for position, class_id in enumerate(classes)}
    image_folder = undoubled(folder / "images")
    warnings = inner_folder_lines("cub", folder, data_root, data_root / NAME)
    warnings += inner_folder_lines("cub", image_folder, folder / "images")
    images = _images(folder, image_folder, paths)
    warnings += not_listed_warnings("cub", image_folder, images.values(), "images.txt")

    def split(flag: str) -> ImageList:
        chosen = [image for image in paths if is_training[image] == flag]
        return ImageList([images[i] for i in chosen], [index[labels[i]] for i in chosen])

    return FineGrainedData("cub", [composed(name) for name in classes.values()], split("1"), split("0"), warnings)


def read_boxes(data_root: Path) -> dict[Path, Box]:
    """The bounding boxes of bounding_boxes.txt, by image file; empty if there is no such file.

    Args:
        data_root: as of `load_cub`.

    Raises:
        InputError: the layout is another one, or a line is no box.
    """
    folder = own_folder(data_root, NAME, "images.txt")
    if folder is None or not (table := folder / "bounding_boxes.txt").is_file():
        return {}
    images = _images(folder, undoubled(folder / "images"), _read_table(folder / "images.txt"))
    found = {}
    for image, field in _read_table(table).items():
        box = parse_box(field, f"cub: {table}, image {escape(image)}")
        if image in images and box is not None:
            found[images[image]] = box
    return found


def _images(folder: Path, image_folder: Path, paths: dict[str, str]) -> dict[str, Path]:
    """Returns the file of each image id; files must be inside the folder, and unique."""
    images: dict[str, Path] = {}
    first_id: dict[Path, str] = {}
    for image, name in paths.items():
        where = f"cub: {folder / 'images.txt'}, image {escape(image)}"
        images[image] = inside(image_folder, name, where)
        if (first := first_id.setdefault(images[image], image)) != image:
            raise InputError(f"{where}: expected each image once, but {escape(name)} is image {first} already")
    return images


def _read_table(path: Path, allowed=None, what: str = "") -> dict[str, str]:
    """Lines "id value" → {id: value}, in their order; `what` says which values are `allowed`."""
    try:
        lines = read_text(path, "cub").rstrip().split("\n")  # ignore blank lines at the end
    except FileNotFoundError:
        raise InputError(f"cub: expected {LAYOUT}, but {path} does not exist; get it from {SOURCE}") from None
    table: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        key, _, value = line.strip().partition(" ")
        value = value.strip()
        if not key and number == len(lines):
            break  # a blank last line
        if not value:
            raise InputError(f'cub: {path}, line {number}: expected "id value", got {line!r:.200}')
        if key in table:
            raise InputError(f"cub: {path}, line {number}: id {escape(key)} is listed a second time")
        if allowed is not None and value not in allowed:
            raise InputError(f"cub: {path}, line {number}: expected {what}, got {value!r:.200}")
        table[key] = value
    return table
