"""The wheel: what is in it, and that it works outside of the repository.

`make dist` tries it with all of its dependencies in an empty environment; here it borrows those of this environment.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import dual_cross_attention

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "dual_cross_attention"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools writes into the folder that it builds."""
    pytest.importorskip("setuptools")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in (PACKAGE, "tests", "benchmarks", "examples"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, built], cwd=source, check=True, capture_output=True)
    (file,) = built.iterdir()
    return file


def test_the_wheel_holds_the_package_and_its_license_and_nothing_else(wheel):
    with ZipFile(wheel) as file:
        names = {name for name in file.namelist() if not name.endswith("/")}
        info = f"{PACKAGE}-{dual_cross_attention.__version__}.dist-info"
        assert file.read(f"{info}/licenses/LICENSE") == (REPOSITORY / "LICENSE").read_bytes()
        assert b"dcal = dual_cross_attention.cli:main" in file.read(f"{info}/entry_points.txt")
        assert b"License-Expression: Apache-2.0" in file.read(f"{info}/METADATA")
    package = (REPOSITORY / PACKAGE).rglob("*")
    expected = {path.relative_to(REPOSITORY).as_posix() for path in package if path.is_file()}
    assert {name for name in names if not name.startswith(info)} == {
        name for name in expected if "__pycache__" not in name
    }
    assert "dual_cross_attention/configs/recipes/cub.yaml" in names  # else an empty package would pass


def test_the_lowest_versions_are_those_of_pyproject(wheel):
    def lowest(*extras: str) -> dict[str, str]:
        words = [sys.executable, REPOSITORY / ".ci" / "lowest_versions.py", wheel, *extras]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        return dict(line.split("==") for line in done.stdout.split())

    text, found = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"), lowest()
    assert all(f'"{name}>={version}' in text for name, version in found.items())
    assert found.keys() >= {"torch", "timm", "onnx", "pyarrow"} and "ruff" not in found
    without_web = lowest("export")
    assert "onnx" in without_web and not {"gradio", "pyarrow"} & without_web.keys()
    # The extra "web" needs a higher one than the package alone.
    assert (without_web["huggingface-hub"], found["huggingface-hub"]) == ("0.30", "1.16")


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "environment"], check=True)
    (site,) = (tmp_path / "environment").glob("[Ll]ib/**/site-packages")
    with ZipFile(wheel) as file:
        file.extractall(site)
    # A .pth file inside of a folder that a .pth file names is not read: no editable install of this repository.
    (site / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    python = next((tmp_path / "environment").glob("[BbS]*/python*"))

    def dcal(*words: str) -> str:
        done = subprocess.run(
            [python, "-m", PACKAGE, *words], cwd=tmp_path, capture_output=True, text=True, env={"PATH": ""}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [python, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"], cwd=tmp_path, capture_output=True, text=True
    ).stdout
    assert Path(where.strip()).is_relative_to(tmp_path)
    assert dual_cross_attention.__version__ in dcal("--version")
    assert "predict" in dcal("--help")
    dcal(
        *("train", "--task", "fgvc", "--dataset", "toy", "--weights", "none", "--img_size", "32", "--epochs", "1"),
        *("--warmup_epochs", "0", "--batch_size", "64", "--backbone", "vit_tiny_patch16_224", "--num_workers", "0"),
        *("--device", "cpu", "--output_dir", "run"),
        *("--backbone_kwargs", '{"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}'),
    )
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    assert "red.png" in dcal("predict", "run", "red.png")
