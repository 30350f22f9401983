"""Adds images to an index, as a process of its own that a test kills or runs beside another one.

    python adding_process.py INDEX FIRST LAST

adds the files /FIRST ... /LAST with the content of their number, in stages of 50, and prints "ready" before it begins.
"""

import sys

from dual_cross_attention.gallery import GalleryIndex, vectors
from dual_cross_attention.gallery.index import GalleryImage
from tests.gallery.conftest import vector

AT_ONCE = 50


def main(folder: str, first: int, last: int) -> None:
    vectors.FLAT_TAIL = 100  # the graph is written, too
    index = GalleryIndex.open(folder)
    numbers = range(first, last + 1)
    images = [GalleryImage(f"/{number}", f"{number // 20}", f"{number}".encode()) for number in numbers]
    features = [vector(f"{number}", index.settings.dimension) for number in numbers]
    print("ready", flush=True)
    with index.writing():
        missing = index.missing([image.digest for image in images])
        for start in range(0, len(missing), AT_ONCE):
            some = missing[start : start + AT_ONCE]
            index.stage([images[place].digest for place in some], [features[place] for place in some])
        index.add(images)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
