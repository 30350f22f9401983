"""What tests of data share: writing small images, and looking at what a user is told."""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from dual_cross_attention.errors import InputError


@pytest.fixture
def refused() -> Callable:
    """`with refused("expected", "path"): …` needs an InputError in one line that has all those words."""

    @contextmanager
    def refuse(*words: object):
        with pytest.raises(InputError) as caught:
            yield
        message = f"{caught.value}"
        assert "\n" not in message
        for word in words:
            assert f"{word}" in message

    return refuse


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """Writes an image of one color, folders included."""

    def write(path: Path, color: tuple[int, int, int] = (200, 30, 60), size: tuple[int, int] = (10, 8)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, color).save(path)
        return path

    return write
