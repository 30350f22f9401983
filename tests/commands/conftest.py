"""Folders of images that become archives."""

from pathlib import Path

import pytest

from tests.commands.sharded import write_crowd


@pytest.fixture(scope="module")
def crowd(tmp_path_factory) -> Path:
    return write_crowd(tmp_path_factory.mktemp("crowd"))


@pytest.fixture
def folders(images, crowd) -> dict[str, Path]:
    return {"fgvc": images, "reid": crowd}
