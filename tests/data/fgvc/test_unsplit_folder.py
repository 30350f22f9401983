"""A folder of class folders without a split: what is found, split, said and refused."""

import shutil
from pathlib import Path

import pytest

from dual_cross_attention.data import load_fgvc
from tests.helpers import any_says, names_of

CLASSES = ("crow", "robin", "wren")


@pytest.fixture
def birds(tmp_path, write_image) -> Path:
    """Three classes of ten images, all different."""
    root = tmp_path / "birds"
    for label, name in enumerate(CLASSES):
        for number in range(10):
            write_image(root / name / f"{number}.png", (10 * number, 80 * label, 50))
    return root


def sides(root, **options) -> dict[str, str]:
    """Each image with its split."""
    data = load_fgvc("folder", root, val_fraction=0.2, **options)
    return {
        path.relative_to(root).as_posix(): split for split in ("train", "test") for path in getattr(data, split).images
    }


def test_without_the_flag_it_is_named(birds, refused):
    with refused(birds, "3 class folders", "30 images", "--val_fraction"):
        load_fgvc("folder", birds)


def test_every_image_is_on_one_side_in_proportion(birds):
    data = load_fgvc("folder", birds, val_fraction=0.2)
    assert data.classes == list(CLASSES) and data.warnings == []
    assert data.train.labels == sorted([0, 1, 2] * 8) and data.test.labels == sorted([0, 1, 2] * 2)
    assert sorted(names_of(data.train) + names_of(data.test)) == sorted(
        f"{c}/{n}.png" for c in CLASSES for n in range(10)
    )
    for split in (data.train, data.test):
        assert [path.parent.name for path in split.images] == [data.classes[label] for label in split.labels]
    assert any_says(data.notes, birds, "24 to train on", "6 to validate on")


def test_a_copy_elsewhere_has_the_same_split(birds, tmp_path):
    shutil.copytree(birds, tmp_path / "elsewhere/deep/birds")
    assert sides(tmp_path / "elsewhere/deep/birds") == sides(birds)
    wrapped = load_fgvc("folder", tmp_path / "elsewhere", val_fraction=0.2)
    assert sorted(names_of(wrapped.test)) == sorted(name for name, split in sides(birds).items() if split == "test")
    assert any_says(wrapped.warnings, tmp_path / "elsewhere/deep/birds", "is read")


def test_copies_are_in_one_split_and_reported(birds):
    before = sides(birds)
    for number in range(10):
        shutil.copy(birds / f"crow/{number}.png", birds / f"crow/copy of {number}.png")
    after = sides(birds)
    for number in range(10):
        assert after[f"crow/{number}.png"] == after[f"crow/copy of {number}.png"]
    assert {name: split for name, split in after.items() if "crow" not in name} == {
        name: split for name, split in before.items() if "crow" not in name
    }
    assert any_says(load_fgvc("folder", birds, val_fraction=0.2).notes, "20 images are byte-identical", "same split")


def test_copies_in_two_classes_are_training_images(birds):
    before = sides(birds)
    (validated,) = [name for name, split in before.items() if split == "test" and name.startswith("wren")][:1]
    shutil.copy(birds / validated, birds / "crow/same.png")
    after = sides(birds)
    assert after["crow/same.png"] == after[validated] == "train"
    assert any_says(load_fgvc("folder", birds, val_fraction=0.2).notes, "of different classes", "training images")


def test_a_class_of_one_image_is_trained_on_and_reported(birds, write_image):
    write_image(birds / "heron/only.png", (1, 2, 3))
    data = load_fgvc("folder", birds, val_fraction=0.5)
    assert "heron/only.png" in names_of(data.train) and 1 not in data.test.labels
    assert any_says(data.warnings, "without a validation image", "heron")


def test_other_files_and_folders(birds, write_image):
    expected = sides(birds)
    (birds / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (birds / "crow/.DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (birds / "notes").mkdir()
    (birds / "notes/list.txt").write_text("words")
    write_image(birds / ".trash/old.png")
    write_image(birds / "crow/.hidden.png")
    write_image(birds / "loose.png")
    assert sides(birds) == expected
    data = load_fgvc("folder", birds, val_fraction=0.2)
    assert data.classes == list(CLASSES)
    assert any_says(data.warnings, "no classes", "notes")
    assert any_says(data.warnings, "2 hidden images") and any_says(data.warnings, "no class folder", "loose.png")


def test_a_class_of_other_extensions_is_refused(birds, refused):
    (birds / "heron").mkdir()
    (birds / "crow/0.png").rename(birds / "heron/0.heic")
    with refused("heron", "0.heic"):
        load_fgvc("folder", birds, val_fraction=0.2)


def test_subfolders_belong_to_their_class(birds):
    (birds / "crow/2024").mkdir()
    (birds / "crow/0.png").rename(birds / "crow/2024/0.png")
    found = sides(birds)
    assert len(found) == 30 and "crow/2024/0.png" in found


def test_names_that_differ_in_case_are_warned_about(birds, write_image):
    if (birds / "WREN").exists():
        pytest.skip("this file system does not tell case apart")
    for number in range(3):
        write_image(birds / f"Wren/{number}.png", (9, 9, number))
    data = load_fgvc("folder", birds, val_fraction=0.2)
    assert data.classes == ["Wren", *CLASSES]
    assert any_says(data.warnings, "differ in case", "Wren and wren")


def test_links(birds, tmp_path, write_image):
    expected = sides(birds)
    (birds / "crow/up").symlink_to(birds)
    (birds / "all").symlink_to(birds)
    assert sides(birds) == expected
    write_image(tmp_path / "elsewhere/x.png", (3, 3, 3))
    (birds / "link").symlink_to(tmp_path / "elsewhere")
    assert sides(birds)["link/x.png"] == "train"


@pytest.mark.parametrize("test", ["val", "test"])
def test_an_existing_split_refuses_the_flag(birds, refused, test):
    for split in ("train", test):
        shutil.copytree(birds, birds.parent / "split" / split)
    with refused("--val_fraction", "train/", f"{test}/"):
        load_fgvc("folder", birds.parent / "split", val_fraction=0.2)


@pytest.mark.parametrize("fraction", [None, 0.2])
@pytest.mark.parametrize("splits", [("train",), ("Train", "Val"), ("val",), ("train", "validation")])
def test_half_a_split_is_no_class(birds, refused, splits, fraction):
    for split in splits:
        shutil.copytree(birds, birds.parent / "split" / split)
    with refused("train/CLASS/*.jpg", "val/CLASS/*.jpg", *(f"{split}/" for split in splits)):
        load_fgvc("folder", birds.parent / "split", val_fraction=fraction)


def test_train_alone_can_be_split_as_the_error_says(birds, refused):
    shutil.copytree(birds, birds.parent / "split/train")
    with refused(f"--data_root {birds.parent / 'split/train'} --val_fraction"):
        load_fgvc("folder", birds.parent / "split")
    assert sides(birds.parent / "split/train") == sides(birds)


def test_a_class_named_train(birds):
    (birds / "crow").rename(birds / "train")
    data = load_fgvc("folder", birds, val_fraction=0.2)
    assert data.classes == ["robin", "train", "wren"]
    assert any_says(data.warnings, "train", "it is a class")


def test_other_datasets_refuse_the_flag(birds, refused):
    with refused("--val_fraction", "cub"):
        load_fgvc("cub", birds, val_fraction=0.2)
    with refused("--val_fraction", "toy"):
        load_fgvc("toy", None, val_fraction=0.2)


# --- for evaluation ---


def test_the_same_validation_images_without_training_images(birds):
    both = load_fgvc("folder", birds, val_fraction=0.2)
    alone = load_fgvc("folder", birds, val_fraction=0.2, train=False)
    assert alone.train is None and alone.test == both.test
    assert load_fgvc("folder", birds, val_fraction=0.2, train=False, split="val").test == both.test


def test_without_a_fraction_all_images_are_test_images(birds):
    data = load_fgvc("folder", birds, train=False)
    assert data.train is None and len(data.test) == 30
    assert any_says(data.notes, "all images are test images")


def test_splits_that_do_not_exist(birds, refused):
    for options in ({"split": "test", "val_fraction": 0.2}, {"split": "val"}):
        with refused(f"--split {options['split']}", birds):
            load_fgvc("folder", birds, train=False, **options)
    (birds.parent / "split").mkdir()
    birds.rename(birds.parent / "split/val")
    with refused("test/", "--split test", "val/"):
        load_fgvc("folder", birds.parent / "split", train=False, split="test")


def test_test_beside_val(birds, write_image):
    root = birds.parent / "split"
    shutil.copytree(birds, root / "val")
    write_image(root / "test/wren/a.png")
    assert len(load_fgvc("folder", root, train=False).test) == 30
    assert any_says(load_fgvc("folder", root, train=False).warnings, "--split test")
    data = load_fgvc("folder", root, train=False, split="test")
    assert names_of(data.test) == ["wren/a.png"] and data.warnings == []


def test_labels_of_a_model(birds, refused):
    data = load_fgvc("folder", birds, train=False)
    fitted = data.with_classes_of_model(["wren", "owl", "robin", "crow"])
    assert fitted.classes == ["wren", "owl", "robin", "crow"]
    assert fitted.test.labels == [0] * 10 + [2] * 10 + [3] * 10
    for path, label in zip(fitted.test.images, fitted.test.labels, strict=True):
        assert path.parent.name == fitted.classes[label]
    assert any_says(fitted.notes, "1 of the 4 classes", "owl")
    with refused("crow", "leave_out"):
        data.with_classes_of_model(["wren", "robin"])
    rest = data.with_classes_of_model(["wren", "robin"], "leave_out")
    assert rest.test.labels == [0] * 10 + [1] * 10
    assert any_says(rest.warnings, "10 images of 1 classes", "crow")
    for unknown_classes in ("refuse", "leave_out"):
        with refused("3 classes"):
            data.with_classes_of_model(["oak", "elm"], unknown_classes)
