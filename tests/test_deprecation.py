"""Earlier names of public objects."""

import pytest

from dual_cross_attention import attention, data


@pytest.mark.parametrize(
    ("module", "earlier", "today"),
    [
        (data, "PictureDataset", "ImageDataset"),
        (data, "PictureList", "ImageList"),
        (data, "UnreadablePicture", "UnreadableImage"),
        (data, "read_picture", "read_image"),
        (attention, "draw_distractors", "sample_distractors"),
    ],
)
def test_earlier_names_warn(module, earlier, today):
    with pytest.warns(DeprecationWarning, match=today):
        assert getattr(module, earlier) is getattr(module, today)


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = data.nonsense
