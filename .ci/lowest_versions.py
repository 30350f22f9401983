"""Prints a pip constraints file with the lowest version of each direct dependency that a wheel allows.

python .ci/lowest_versions.py dist/*.whl > lowest.txt                  # with all extras for users
python .ci/lowest_versions.py dist/*.whl export parquet > lowest.txt   # with these alone
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


def lowest_versions(wheel: Path, extras: list[str] | None = None) -> list[str]:
    """Lines NAME==VERSION of the dependencies and of extras; of a package that is named twice, the higher version.

    Args:
        wheel: the file.
        extras: None: all extras for users.

    Raises:
        ValueError: a dependency without a lowest version.
    """
    with ZipFile(wheel) as file:
        (metadata,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        required = message_from_bytes(file.read(metadata)).get_all("Requires-Dist", [])
    found: dict[str, str] = {}
    for line in required:
        match = LOWEST.fullmatch(line)
        if not match:
            raise ValueError(f"{wheel}: expected NAME>=VERSION, got {line!r}")
        name, version, extra = match["name"], match["version"], match["extra"]
        if extra is None or (extra not in FOR_DEVELOPERS if extras is None else extra in extras):
            found[name] = max(found.get(name, "0"), version, key=lambda text: [int(part) for part in text.split(".")])
    return [f"{name}=={version}" for name, version in found.items()]


if __name__ == "__main__":
    print("\n".join(lowest_versions(Path(sys.argv[1]), sys.argv[2:] or None)))
