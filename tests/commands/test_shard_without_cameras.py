"""`dcal shard` of re-identification without cameras: archives, training from them, and what is refused."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention.data.reid import load_reid
from dual_cross_attention.errors import InputError
from tests.helpers import assert_refused


def write_images(root: Path, *splits: str) -> Path:
    """Individuals with four images each, named as Amber_Left_Face0.png."""
    for split in splits:
        names = ("Ada", "Bo", "Cy") if split == "train" else ("Amber", "Bella", "Cleo")
        for number, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for side in range(4):
                color = (60 * number + 10 * side + len(split), 200 - 50 * number, 30 + 40 * side)
                image = Image.new("RGB", (16, 32), color)
                image.save(root / split / name / f"{name}_{('Left', 'Right')[side % 2]}_Face{side}.png")
    return root


@pytest.fixture
def shard(dcal, tmp_path):
    """`shard(root)` writes archives of a folder; returns the outcome of the command and the folder."""

    def run(root: Path):
        flags = ["--task=reid", "--dataset=folder", f"--data_root={root}", f"--output_dir={tmp_path / 'out'}"]
        return dcal("shard", *flags, "--num_workers=0"), tmp_path / "out"

    return run


def labels_of(archive: Path) -> list[dict]:
    with tarfile.open(archive) as file:
        return [json.load(file.extractfile(member)) for member in file if member.name.endswith(".json")]


def test_leave_one_out_from_archives(dcal, shard, small_reid, tmp_path):
    images = write_images(tmp_path / "wild", "train", "test")
    outcome, out = shard(images)
    assert outcome.status == 0 and "Amber_Left_Face" in outcome.out
    assert sorted(path.name for path in out.glob("*.tar")) == ["test-000000.tar", "train-000000.tar"]
    assert {*map(len, labels_of(out / "test-000000.tar"))} == {1}  # an identity, and no camera
    data, expected = (load_reid("shards", out), load_reid("folder", images, cameras="none"))
    assert data.leave_one_out and data.query.cameras is None and data.train.cameras is None
    assert any("leave-one-out" in note for note in data.notes) and any("none" in note for note in data.notes)
    for split in ("train", "query"):
        listed, there = getattr(data, split), getattr(expected, split)
        assert np.bincount(listed.identities).tolist() == np.bincount(there.identities).tolist()
    flags = [*small_reid, "--dataset=shards", f"--data_root={out}", "--epochs=1", "--batch_size=6"]
    run = tmp_path / "run"
    assert dcal("train", *flags, f"--output_dir={run}").status == 0
    from_archives, from_files = tmp_path / "a.json", tmp_path / "b.json"
    assert dcal("eval", run, "--device=cpu", f"--json={from_archives}").status == 0
    other = [f"--data_root={images}", "--dataset=folder", f"--json={from_files}"]
    assert dcal("eval", run, "--device=cpu", *other, "--cameras=none").status == 0
    scores = [json.loads(path.read_text()) for path in (from_archives, from_files)]
    assert scores[0]["mAP"] == pytest.approx(scores[1]["mAP"]) and scores[0]["valid_queries"] == 12


def test_query_and_gallery_without_cameras(shard, tmp_path):
    images = write_images(tmp_path / "wild", "train", "query", "gallery")
    outcome, out = shard(images)
    assert outcome.status == 0
    data = load_reid("shards", out)
    assert not data.leave_one_out and data.query.cameras is None and len(data.gallery) == 12
    (out / "gallery-000000.tar").rename(out / "test-000000.tar")
    (out / "dcal-shards.json").unlink()
    with pytest.raises(InputError, match="query and test"):
        load_reid("shards", out)


def test_queries_in_the_gallery_are_refused(shard, tmp_path):
    """Archives do not say which gallery image is the query itself."""
    images = write_images(tmp_path / "wild", "train", "query")
    (images / "gallery").symlink_to(images / "query")
    outcome, _ = shard(images)
    assert_refused(outcome, "12 of 12", "gallery", "test/")


def test_crops_of_one_file_are_said(shard, tmp_path):
    images = write_images(tmp_path / "wild", "train", "photos")
    rows = ["identity,path,bbox"]
    for name in ("Amber", "Bella"):
        for number, side in enumerate(("Left", "Right")):
            rows += [f'{name},photos/{name}/{name}_{side}_Face{number}.png,"[{left}, 0, 8, 32]"' for left in (0, 8)]
    (images / "test.csv").write_text("\n".join(rows))
    outcome, out = shard(images)
    assert outcome.status == 0, outcome
    assert "8 of 8 test images are crops" in outcome.out.replace("\n", " ")
    assert len(labels_of(out / "test-000000.tar")) == 8


def test_some_cameras_are_refused(tmp_path, shard):
    images = write_images(tmp_path / "wild", "train", "query", "gallery")
    _, out = shard(images)
    path = out / "query-000000.tar"
    with tarfile.open(path) as file:
        members = [(member, file.extractfile(member).read()) for member in file]
    for kept, words in ((1, "none after 7"), (len(members), "none in gallery")):
        with tarfile.open(path, "w") as file:
            for place, (member, content) in enumerate(members):
                if member.name.endswith(".json") and place < 2 * kept:
                    content = json.dumps(json.loads(content) | {"camera": 7}).encode()
                one = tarfile.TarInfo(member.name)
                one.size = len(content)
                file.addfile(one, io.BytesIO(content))
        with pytest.raises(InputError, match=words):
            load_reid("shards", out)
