"""Market-1501 and DukeMTMC-reID in their official layouts, which differ in the file names only."""

import re
from pathlib import Path

from dual_cross_attention.data.reid.identities import ReIDData
from dual_cross_attention.data.reid.leftovers import leftovers
from dual_cross_attention.data.reid.records import Sighting, parsed
from dual_cross_attention.data.reid.release import Counts, Release, files_in, released_data, split_folder

FOLDERS = {"training": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
JUNK = "-1"
DISTRACTORS = "0000"

MARKET1501 = Release(
    "market1501",
    "Market-1501-v15.09.15/ with bounding_box_train/, query/ and bounding_box_test/",
    "https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html",
    ("Market-1501-v15.09.15",),
    "identity and camera, as 0002_c1s1_000451_03.jpg has",
    # bounding_box_test has 19,732 files, of which 3,819 are junk.
    {"training": Counts(12_936, 751), "query": Counts(3_368, 750), "gallery": Counts(15_913, 750)},
    DISTRACTORS,
    'the number after "c" in a file name',
)
MARKET1501_NAME = re.compile(r"(-?[0-9]+)_c([0-9]+)s[0-9]+_", re.IGNORECASE)
"""Any number of digits: datasets in this layout have more cameras, sequences and frames than Market-1501."""

DUKEMTMC = Release(
    "dukemtmc",
    "DukeMTMC-reID/ with bounding_box_train/, query/ and bounding_box_test/",
    "https://github.com/layumi/DukeMTMC-reID_evaluation",
    ("DukeMTMC-reID",),
    "identity and camera, as 0001_c2_f0046182.jpg has",
    {"training": Counts(16_522, 702), "query": Counts(2_228, 702), "gallery": Counts(17_661, 1_110)},
    taken_from='the number after "c" in a file name',
)
DUKEMTMC_NAME = re.compile(r"(-?[0-9]+)_c([0-9]+)_f[0-9]", re.IGNORECASE)


def load_market1501(data_root: Path, train: bool = True) -> ReIDData:
    """Loads Market-1501; 0002_c1s1_000451_03.jpg is identity 2 under camera 1.

    Junk (identity -1) is left out and counted in a warning; distractors (0000) are in the gallery, as identity 0.
    Numbers have any count of digits: 0001_c12s1_000001_00.jpg is of camera 12.
    From https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html.

    Args:
        data_root: the folder Market-1501-v15.09.15, or the one that holds it.
        train: read the training images too.

    Raises:
        InputError: the layout is another one, or a folder has no image with such a name.
    """
    return _load(MARKET1501, MARKET1501_NAME, data_root, train)


def load_dukemtmc(data_root: Path, train: bool = True) -> ReIDData:
    """As `load_market1501`, from names like 0001_c2_f0046182.jpg; distractors have identities of their own.

    From https://github.com/layumi/DukeMTMC-reID_evaluation.

    Args:
        data_root: the folder DukeMTMC-reID, or the one that holds it.
        train: read the training images too.

    Raises:
        InputError: the layout is another one, or a folder has no image with such a name.
    """
    return _load(DUKEMTMC, DUKEMTMC_NAME, data_root, train)


def _load(release: Release, pattern: re.Pattern, data_root: Path, train: bool) -> ReIDData:
    home = release.found_in(data_root, FOLDERS["gallery"])

    def sighting(file: Path) -> Sighting | None:
        match = pattern.match(file.name)
        if not match:
            return None
        identity, camera = match.groups()
        if identity.startswith("-"):
            identity = JUNK
        elif not identity.strip("0"):  # in any number of digits
            identity = DISTRACTORS
        return Sighting(file, identity, camera)

    warnings = release.inner_folder_lines(home, data_root)
    splits = {}
    for split, name in FOLDERS.items():
        if split == "training" and not train:
            continue
        folder = split_folder(release, home / name, warnings)
        where = f"{release.name}: {folder}"
        files = files_in(release, folder)
        seen = parsed(files, sighting, where, release.naming, warnings)
        warnings += leftovers(where, folder, files, 0)
        not_people = [JUNK] if split == "gallery" else [JUNK, DISTRACTORS]
        splits[split] = [s for s in seen if s.identity not in not_people]
        if junk := len(seen) - len(splits[split]):
            warnings.append(f"{where}: {junk:,} junk images (identity {' or '.join(not_people)}) are left out")
    return released_data(release, splits, warnings)
