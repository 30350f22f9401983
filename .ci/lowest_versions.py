"""Prints a pip constraints file with the lowest version of each direct dependency that a wheel allows.

python .ci/lowest_versions.py dist/*.whl > lowest.txt
.ci/try_wheel dist/*.whl -c lowest.txt
"""

import re
import sys
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

LOWEST = re.compile(r"(?P<name>[A-Za-z0-9._-]+)[^;]*>=(?P<version>[0-9.]+)[^;]*(; extra == ['\"](?P<extra>.*)['\"])?")
FOR_DEVELOPERS = ("dev", "docs")
"""Extras that are left out."""


def lowest_versions(wheel: Path) -> list[str]:
    """Lines NAME==VERSION of the dependencies and of the extras for users.

    Raises:
        ValueError: a dependency without a lowest version.
    """
    with ZipFile(wheel) as file:
        (metadata,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        required = message_from_bytes(file.read(metadata)).get_all("Requires-Dist", [])
    found = []
    for line in required:
        match = LOWEST.fullmatch(line)
        if not match:
            raise ValueError(f"{wheel}: expected NAME>=VERSION, got {line!r}")
        if match["extra"] not in FOR_DEVELOPERS:
            found.append(f"{match['name']}=={match['version']}")
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    print("\n".join(lowest_versions(Path(sys.argv[1]))))
