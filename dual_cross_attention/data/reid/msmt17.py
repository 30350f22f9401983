"""MSMT17 in its official layout, of version 1 or of version 2, whose faces are masked."""

from pathlib import Path

from dual_cross_attention.data.files import inside
from dual_cross_attention.data.folders import what_is_in
from dual_cross_attention.data.reid.identities import ReIDData
from dual_cross_attention.data.reid.release import Counts, Release, lines_of, on_disk, released_data
from dual_cross_attention.data.reid.sightings import Sighting, parsed
from dual_cross_attention.errors import InputError
from dual_cross_attention.messages import printable

MSMT17 = Release(
    "msmt17",
    "MSMT17_V1/ with train/ and test/, or MSMT17_V2/ with mask_train_v2/ and mask_test_v2/, and in either "
    "list_train.txt, list_val.txt, list_query.txt and list_gallery.txt",
    "https://www.pkuvmc.com/dataset.html",
    ("MSMT17_V1", "MSMT17_V2"),
    "a camera in its third field, as 0000_000_01_0303morning_0015_0.jpg has",
    {"training": Counts(32_621, 1_041), "query": Counts(11_659, 3_060), "gallery": Counts(82_161, 3_060)},
)
FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
LISTS = {
    "training": ("list_train.txt", "list_val.txt"),
    "query": ("list_query.txt",),
    "gallery": ("list_gallery.txt",),
}


def load_msmt17(data_root: Path, train: bool = True) -> ReIDData:
    """Lists have lines like "0000/0000_000_01_0303morning_0015_0.jpg 0": the path, with camera 1, and the identity.

    Training pictures are those of list_train.txt and then those of list_val.txt; paths are relative to train/ or test/.
    Training identity 0 and test identity 0 are two people. From https://www.pkuvmc.com/dataset.html.

    Args:
        data_root: the folder MSMT17_V1 or MSMT17_V2, or the one that holds one of them.
        train: read the training pictures too.

    Raises:
        InputError: the layout is another one, a line of a list is, or none of a list's pictures is there.
    """
    home = MSMT17.found_in(data_root, LISTS["query"][0])
    warnings: list[str] = []
    splits = {
        split: [seen for name in names for seen in _read(home / name, _pictures(home, split), warnings)]
        for split, names in LISTS.items()
        if train or split != "training"
    }
    return released_data(MSMT17, splits, warnings)


def _pictures(home: Path, split: str) -> Path:
    names = [train if split == "training" else test for train, test in FOLDERS]
    for name in names:
        if (home / name).is_dir():
            return home / name
    raise MSMT17.error(f"expected the folder {' or '.join(names)} in {home}, but {what_is_in(home)}")


def _read(path: Path, pictures: Path, warnings: list[str]) -> list[Sighting]:
    identities: dict[Path, str] = {}
    for number, line in lines_of(MSMT17, path):
        name, _, identity = line.rpartition(" ")
        if not (name and identity.isdecimal()):
            raise InputError(f'msmt17: {path}, line {number}: expected "path identity", got {line!r:.200}')
        picture = inside(pictures, name, f"msmt17: {path}, line {number}")
        if picture in identities:
            raise InputError(f"msmt17: {path}, line {number}: {printable(name)} is listed a second time")
        identities[picture] = identity.zfill(4)  # as the folder of its pictures is named

    def sighting(file: Path) -> Sighting | None:
        camera = [*file.name.split("_"), "", "", ""][2]
        return Sighting(file, identities[file], camera) if camera.isdecimal() else None

    files = on_disk(MSMT17, path, list(identities), warnings)
    return parsed(files, sighting, f"msmt17: {path}", MSMT17.naming, warnings)
