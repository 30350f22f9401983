"""Shards whose classes are those of a model in another order: sorted names differ where Unicode decomposes them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from dual_cross_attention.data import load_fgvc
from dual_cross_attention.data.fingerprint import fingerprint_split
from dual_cross_attention.data.shards.columns import IndexedNumbers

SPELLINGS = {"composed": "\u00e9tourneau", "decomposed": "e\u0301tourneau"}
"""Sorted, é is after "wren" composed, and before it decomposed."""


@pytest.fixture
def shards(dcal, tmp_path) -> dict[str, Path]:
    """The same images in two sets of archives. Of 5 test images, 4 are of one class: labels matter for the accuracy."""
    for form, name in SPELLINGS.items():
        for split, counts in (("train", {name: 6, "wren": 6}), ("val", {name: 1, "wren": 4})):
            for each, count in counts.items():
                folder = tmp_path / "images" / form / split / each
                folder.mkdir(parents=True)
                for number in range(count):
                    Image.new("RGB", (32, 32), (250 * (each == "wren"), 20 * number, 90)).save(folder / f"{number}.png")
        flags = ["--dataset", "folder", "--data_root", tmp_path / "images" / form, "--num_workers", 0]
        assert dcal("shard", *flags, "--output_dir", tmp_path / form).status == 0
    return {form: tmp_path / form for form in SPELLINGS}


def test_labels_stay_in_the_index(shards):
    one, two = (load_fgvc("shards", shards[form]) for form in SPELLINGS)
    assert two.classes == one.classes[::-1]
    aligned = two.with_order_of(one.classes)
    for split in ("train", "test"):
        before, after = getattr(two, split).labels, getattr(aligned, split).labels
        assert isinstance(after, IndexedNumbers)  # a list would have millions of numbers in memory
        assert [aligned.classes[label] for label in after] == [two.classes[label] for label in before]
        assert np.asarray(after).tolist() == [1 - label for label in np.asarray(before)]
        assert after.counts.tolist() == before.counts.tolist()
        assert fingerprint_split(getattr(aligned, split).images, after).images == len(after)


def test_evaluate(dcal, shards, small, tmp_path):
    run = tmp_path / "run"
    flags = [flag for flag in small if not flag.startswith(("--dataset", "--data_root", "--epochs", "--lr"))]
    trained = dcal(
        "train", *flags, "--dataset=shards", f"--data_root={shards['composed']}", "--epochs=1", "--output_dir", run
    )
    assert trained.status == 0, trained.err
    model = run / "best.safetensors"
    metadata, tensors = _metadata(model), load_file(model)
    heads = [name for name, tensor in tensors.items() if tensor.shape == (2,)]
    assert heads
    for name in heads:
        tensors[name][:] = tensors[name].new_tensor([1e4, 0])  # every image is of the first class, "wren"
    save_file(tensors, model, metadata)
    for root in shards.values():
        outcome = dcal("eval", run, "--data_root", root, "--json", "-")
        assert outcome.status == 0, outcome.err
        assert json.loads(outcome.out)["top1"] == pytest.approx(80)  # of 5 images, 4 are of "wren"


def _metadata(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size))["__metadata__"]
