"""Which test identities are training identities too, by the names of a dataset; and which are distractors."""

import numpy as np

from dual_cross_attention.data.reid.cameras import CameraSource
from dual_cross_attention.data.reid.identities import IdentityList, ReIDData
from dual_cross_attention.data.reid.market1501 import load_market1501
from dual_cross_attention.data.synthetic.people import draw_toy_people


def test_names_and_numbers(tmp_path):
    from PIL import Image

    def data(**options):
        images = [Image.new("RGB", (4, 8))] * 4
        sides = [IdentityList(images, [0, 1, 2, 3], [camera] * 4) for camera in (1, 2)]
        return ReIDData("folder", [], None, *sides, **options)

    named = data(camera_source=CameraSource("names", identities=["e\u0301va", "Bob", "0002", "3"]))
    assert named.training_identities(["\xe9va", "bob", "2"]) == {0}
    assert named.training_identities(["Bob", "0002", "other"]) == {1, 2}
    numbered = data(camera_source=CameraSource("numbers"), same_numbers=True)
    assert numbered.training_identities(["0001", "3", "-1", "x", "²", "9" * 10_000]) == {1, 3}
    assert data(camera_source=CameraSource("numbers")).training_identities(["0001"]) == set()
    assert data().training_identities(["1"]) == set()
    assert data(same_numbers=True, distractors=1).training_identities(["1", "2"]) == {2}


def test_what_layouts_say(tmp_path):
    for folder, names in (
        ("bounding_box_train", ["0001_c1s1_0_0.jpg", "0005_c1s1_0_0.jpg", "0005_c2s1_0_0.jpg"]),
        ("query", ["0002_c1s1_0_0.jpg", "0005_c1s1_0_0.jpg"]),
        ("bounding_box_test", ["0000_c1s1_0_0.jpg", "0002_c2s1_0_0.jpg", "0005_c2s1_0_0.jpg", "-1_c2s1_0_0.jpg"]),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    trained = load_market1501(tmp_path)
    for data in (trained, load_market1501(tmp_path, train=False)):
        assert data.training_identities(trained.identities) == {5} and data.distractors == 0
    toy = draw_toy_people(train=False, gallery_per_camera=1)
    assert toy.distractors == 0 and not toy.training_identities(["1", "person_01"])
    assert int((np.asarray(toy.gallery.identities) == 0).sum()) == 24
