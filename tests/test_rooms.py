"""Which room may import which: what is used after a training knows nothing of training."""

import ast
from pathlib import Path

import pytest

import dual_cross_attention

PACKAGE = Path(dual_cross_attention.__file__).parent
ROOMS = (
    "attention backbones configs data explanation export gallery inference metrics models report reproduction runs "
    "tasks web weights"
)
BELOW_TRAINING = ROOMS.split()
MAY_NOT_IMPORT = {
    **{room: {"training", "commands", "cli", "report"} - {room} for room in BELOW_TRAINING},
    "training": {"commands", "cli", "gallery", "report"},
    "inference": {"training", "commands", "cli", "gallery", "report"},
    "configs": {"training", "commands", "cli", "inference", "models", "tasks", "data", "runs", "weights", "backbones"},
    "metrics": {"training", "commands", "cli", "inference", "models", "tasks", "data", "runs", "weights", "backbones"},
    "weights": {"training", "commands", "cli", "inference", "models", "tasks", "data", "runs", "backbones"},
    "backbones": {"training", "commands", "cli", "inference", "models", "tasks", "data", "runs"},
    "data": {"training", "commands", "cli", "inference", "models", "tasks", "runs", "weights", "backbones"},
    "models": {"training", "commands", "cli", "inference", "tasks", "runs", "data"},
}
ONLY_ON_UNIX = {"fcntl", "resource", "grp", "pwd", "termios"}


def imported(path: Path, top_only: bool = False) -> set[str]:
    """Names of the modules that a file imports, anywhere in it, or at its top alone."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("room", sorted(MAY_NOT_IMPORT))
def test_rooms(room):
    for path in (PACKAGE / room).rglob("*.py"):
        of_package = {name.split(".")[1] for name in imported(path) if name.startswith("dual_cross_attention.")}
        assert not of_package & MAY_NOT_IMPORT[room], path


def test_only_a_call_imports_the_web_page():
    for path in PACKAGE.rglob("*.py"):
        if "web" not in path.relative_to(PACKAGE).parts:
            assert not any(name.startswith("dual_cross_attention.web.") for name in imported(path, top_only=True)), path


def test_what_loads_a_model_works_without_unix():
    files = [path for room in BELOW_TRAINING for path in (PACKAGE / room).rglob("*.py")] + [*PACKAGE.glob("*.py")]
    assert len(files) > 50
    for path in files:
        assert not imported(path, top_only=True) & ONLY_ON_UNIX, path
