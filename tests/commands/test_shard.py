"""Training from archives, and `dcal shard`, from the command line, end to end."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dual_cross_attention.data import load_fgvc
from dual_cross_attention.data.shards import writing
from dual_cross_attention.data.shards.discovery import DESCRIPTION
from dual_cross_attention.tasks import FGVCTask, ReIDTask
from tests.helpers import assert_refused, assert_same_run, metrics_rows

ROOT = Path(__file__).parents[2]
TINY = [
    "--backbone=vit_tiny_patch16_224",
    '--backbone_kwargs={"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}',
    "--weights=none",
    "--epochs=2",
    "--batch_size=8",
    "--lr=1e-3",
    "--num_workers=0",
    "--device=cpu",
]
TASKS = {
    "fgvc": [*TINY, "--img_size=32"],
    "reid": [
        *TINY,
        "--task=reid",
        "--img_size",
        "32",
        "16",
        "--padding=2",
        "--warmup_epochs=0",
        "--eval_every=1",
        "--images_per_identity=2",
    ],
}


def write_crowd(root: Path) -> Path:
    """A dataset of re-identification: 10 people to train on, 3 others, under 2 cameras."""
    for split, people, takes in (("train", range(10), 3), ("query", range(10, 13), 1), ("gallery", range(10, 13), 2)):
        for person in people:
            (root / split / f"{person}").mkdir(parents=True)
            for camera in range(2):
                for take in range(takes):
                    image = Image.new("RGB", (16, 32), (20 * person, 255 - 15 * person, 60 + 90 * camera + take))
                    image.save(root / split / f"{person}" / f"{camera}_{take}.png")
    return root


@pytest.fixture(scope="module")
def crowd(tmp_path_factory) -> Path:
    return write_crowd(tmp_path_factory.mktemp("crowd"))


@pytest.fixture
def folders(images, crowd) -> dict[str, Path]:
    return {"fgvc": images, "reid": crowd}


def shard(dcal, task: str, source: Path, target: Path, *more: object) -> list[str]:
    outcome = dcal(
        "shard", "--task", task, "--dataset", "folder", "--data_root", source, "--output_dir", target,
        "--num_workers", 0, *more,
    )  # fmt: skip
    assert (outcome.status, outcome.err) == (0, "")
    return outcome.out.splitlines()


def flags_in_this_process(source: Path, target: Path) -> list[str]:
    """Of a command with small archives that reads in this process, so that a test can end it in the middle."""
    folders = [f"--data_root={source}", f"--output_dir={target}"]
    return ["shard", "--dataset=folder", *folders, "--shard_mb=1", "--num_workers=0"]


# --- training ---


class Death(BaseException):
    """As sudden as SIGKILL, as far as the training goes: nothing is saved any more."""


@pytest.mark.parametrize("task", TASKS)
def test_train_evaluate_check(dcal, folders, tmp_path, task):
    lines = shard(dcal, task, folders[task], tmp_path / "shards")
    assert lines[-2] == "next:" and lines[-1].startswith(f"  dcal train --task {task} --dataset shards --data_root ")
    root = lines[-1].rpartition(" ")[2]
    assert root == f"{tmp_path}/shards/train-000000.tar"
    flags = [*TASKS[task], "--dataset=shards", f"--data_root={root}"]
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "run")
    assert (outcome.status, outcome.err) == (0, "")
    evaluated = dcal("eval", tmp_path / "run", "--json", "-")
    best = max(metrics_rows(tmp_path / "run"), key=lambda row: row.get("val/mAP", row.get("val/top1")))
    metric = "mAP" if task == "reid" else "top1"
    assert json.loads(evaluated.out)[metric] == pytest.approx(best[f"val/{metric}"], abs=1e-4)
    # The folder that they came from is the same to a model.
    same = dcal("eval", tmp_path / "run", "--dataset", "folder", "--data_root", folders[task], "--json", "-")
    assert json.loads(same.out)[metric] == pytest.approx(best[f"val/{metric}"], abs=1e-4)
    checked = dcal("check-data", "--task", task, "--dataset", "shards", "--data_root", root, "--json", "-")
    assert checked.status == 0
    of_folder = dcal("check-data", "--task", task, "--dataset", "folder", "--data_root", folders[task], "--json", "-")
    ours, theirs = json.loads(checked.out), json.loads(of_folder.out)
    assert ours["splits"] == theirs["splits"]


def test_reid_is_that_of_its_folder_to_the_bit(dcal, crowd, tmp_path):
    """The images come in the same order, so all that is drawn is the same."""
    shard(dcal, "reid", crowd, tmp_path / "shards")
    for name, dataset, root in (("one", "folder", crowd), ("two", "shards", tmp_path / "shards")):
        flags = [*TASKS["reid"], "--dataset", dataset, "--data_root", root, "--output_dir", tmp_path / name]
        assert dcal("train", *flags).status == 0
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_fgvc_is_that_of_a_folder_in_the_same_order(dcal, images, tmp_path):
    """A folder sorts its images by class: archives that are written in that order give the same training."""
    listed = load_fgvc("folder", images)
    for split, each in (("train", listed.train), ("val", listed.test)):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as archive:
            for number, (image, label) in enumerate(zip(each.images, each.labels, strict=True)):
                said = json.dumps({"label": listed.classes[label]}).encode()
                for suffix, content in (("png", image.read_bytes()), ("json", said)):
                    member = tarfile.TarInfo(f"{number:05}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    for name, dataset, root in (("one", "folder", images), ("two", "shards", tmp_path)):
        flags = [*TASKS["fgvc"], "--dataset", dataset, "--data_root", root, "--output_dir", tmp_path / name]
        assert dcal("train", *flags).status == 0
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("blocks", [False, True], ids=["one block", "several blocks"])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("task", TASKS)
def test_a_killed_run_resumes_bitwise(dcal, folders, tmp_path, monkeypatch, task, num_workers, blocks):
    shard(dcal, task, folders[task], tmp_path / "shards")
    if blocks:
        monkeypatch.setattr(f"dual_cross_attention.data.{task}.shards.BLOCK", 13)
    flags = [*TASKS[task], "--dataset=shards", f"--data_root={tmp_path / 'shards'}", f"--num_workers={num_workers}"]
    assert dcal("train", *flags, "--output_dir", tmp_path / "whole").status == 0
    cls = FGVCTask if task == "fgvc" else ReIDTask
    steps, step = [], cls.training_step

    def stop_at(task, batch):
        steps.append(batch["labels"].tolist())
        if len(steps) in deaths:
            raise Death
        return step(task, batch)

    monkeypatch.setattr(cls, "training_step", stop_at)
    command = ["train", *flags, "--checkpoint_minutes=0", "--output_dir", tmp_path / "cut"]
    per_epoch = 5 if task == "fgvc" else 8
    deaths = (3, 3 + per_epoch)  # in the first epoch, and in the second: a step is done again
    for _ in deaths:
        with pytest.raises(Death):
            dcal(*command)
    last = dcal(*command)
    assert last.status == 0 and "resumed after epoch 1, step 1 of" in last.out, last
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("task", TASKS)
def test_cache_and_workers_change_nothing(dcal, folders, tmp_path, task):
    shard(dcal, task, folders[task], tmp_path / "shards")
    flags = [*TASKS[task], "--dataset=shards", f"--data_root={tmp_path / 'shards'}"]
    assert dcal("train", *flags, "--output_dir", tmp_path / "plain").status == 0
    more = ["--cache=ram", "--num_workers=2", "--output_dir", tmp_path / "cached"]
    assert dcal("train", *flags, *more).status == 0
    assert_same_run(tmp_path / "plain", tmp_path / "cached")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes(dcal, folders, tmp_path, task):
    """Under torchrun, with no index there yet: one makes it; all images of an epoch are shared out."""
    shard(dcal, task, folders[task], tmp_path / "shards")
    for index in (tmp_path / "shards").glob("*.index"):
        index.unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "train.py"]
    flags = [*TASKS[task], "--dataset=shards", f"--data_root={tmp_path / 'shards'}", f"--output_dir={tmp_path / 'run'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("reading the headers") <= len(list((tmp_path / "shards").glob("*.index")))
    alone = [*flags[:-1], "--gradient_accumulation_steps=2", f"--output_dir={tmp_path / 'alone'}"]
    assert dcal("train", *alone).status == 0
    for ours, theirs in zip(metrics_rows(tmp_path / "run"), metrics_rows(tmp_path / "alone"), strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-3)


def overwrite(member) -> None:
    """Its bytes, and not its header, are of something else then."""
    with member.archive.open("r+b") as file:
        file.seek(member.offset)
        file.write(b"x" * member.size)


def test_unreadable_members_are_named_replaced_and_counted(dcal, images, tmp_path):
    shard(dcal, "fgvc", images, tmp_path / "shards")
    data = load_fgvc("shards", tmp_path / "shards")
    broken = [data.train.images[3], data.test.images[5]]
    for member in broken:
        times = member.archive.stat()
        overwrite(member)
        os.utime(member.archive, ns=(times.st_atime_ns, times.st_mtime_ns))
    flags = [*TASKS["fgvc"], "--dataset=shards", f"--data_root={tmp_path / 'shards'}"]
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    names = [f"{tmp_path}/shards/train-000000.tar/{broken[0].name}", f"{tmp_path}/shards/val-000000.tar/000005.png"]
    for name, happens in zip(names, ("replaced by the next one", "left out"), strict=True):
        lines = [line for line in outcome.out.splitlines() if f"unreadable image, {happens}" in line and name in line]
        assert len(lines) == 1
    assert "2 images could not be read" in outcome.out
    assert json.loads(dcal("eval", tmp_path / "run", "--json", "-").out)["unreadable"] == 1
    assert_refused(
        dcal("train", *flags, "--max_bad_images=0", "--output_dir", tmp_path / "none"),
        "--max_bad_images allows 0",
        names[0],
    )
    checked = dcal("check-data", "--dataset", "shards", "--data_root", tmp_path / "shards", "--json", "-")
    assert checked.status == 1
    assert [found["path"] for found in json.loads(checked.out)["bad"]] == names


def test_rankings_name_members(dcal, crowd, tmp_path):
    shard(dcal, "reid", crowd, tmp_path / "shards")
    flags = [*TASKS["reid"], "--dataset=shards", f"--data_root={tmp_path / 'shards'}", "--epochs=1"]
    assert dcal("train", *flags, "--output_dir", tmp_path / "run").status == 0
    (tmp_path / "shards" / "train-000000.tar").unlink()  # to evaluate, nobody needs it
    assert dcal("eval", tmp_path / "run", "--save_ranking", tmp_path / "ranking.jsonl").status == 0
    lines = [json.loads(line) for line in (tmp_path / "ranking.jsonl").read_text().splitlines()]
    assert [line["query"] for line in lines] == [f"query-000000.tar/{number:06}.png" for number in range(6)]
    assert all(name.startswith("gallery-000000.tar/") for line in lines for name in line["gallery"])


# --- dcal shard ---


def archives_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


@pytest.mark.parametrize("task", TASKS)
def test_the_same_images_give_the_same_archives(dcal, folders, tmp_path, task):
    shard(dcal, task, folders[task], tmp_path / "one")
    copy = shutil.copytree(folders[task], tmp_path / "copy")
    for path in copy.rglob("*.png"):
        os.utime(path, (1, 1))
    shard(dcal, task, copy, tmp_path / "two", "--num_workers", 2)
    ours = archives_of(tmp_path / "one")
    assert ours == archives_of(tmp_path / "two") and len(ours) == (2 if task == "fgvc" else 3)
    with tarfile.open(tmp_path / "one" / "train-000000.tar") as archive:
        kinds = "png cls" if task == "fgvc" else "png json"
        for number, member in enumerate(archive):
            assert member.name == f"{number // 2:06}.{kinds.split()[number % 2]}"
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
    if task == "fgvc":
        shard(dcal, task, copy, tmp_path / "three", "--seed", 1)
        assert archives_of(tmp_path / "three")["train-000000.tar"] != ours["train-000000.tar"]
        assert archives_of(tmp_path / "three")["val-000000.tar"] == ours["val-000000.tar"]


@pytest.fixture
def noisy(tmp_path) -> Path:
    """Images of about 120 kB each: several archives of a million bytes."""
    for split, count in (("train", 24), ("val", 4)):
        for number in range(count):
            path = tmp_path / "noisy" / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.frombytes("RGB", (200, 200), os.urandom(120_000)).save(path)
    return tmp_path / "noisy"


def test_several_archives(dcal, noisy, tmp_path):
    lines = shard(dcal, "fgvc", noisy, tmp_path / "my shards", "--shard_mb", 1)
    assert "24 of train in 3 archives, 4 of val in 1 archive;" in lines[-4]
    assert lines[-1].endswith(f"--data_root '{tmp_path}/my shards/train-{{000000..000002}}.tar'")
    sizes = [path.stat().st_size for path in (tmp_path / "my shards").glob("train-*.tar")]
    assert max(sizes) <= 10**6
    root = f"{tmp_path}/my shards/train-{{000000..000002}}.tar"
    assert len(load_fgvc("shards", root).train) == 24
    assert all(os.stat(path).st_size for path in (tmp_path / "my shards").glob("*.index"))


def test_an_interrupted_command_can_be_run_again(dcal, noisy, tmp_path, monkeypatch):
    shard(dcal, "fgvc", noisy, tmp_path / "whole", "--shard_mb", 1)
    target = tmp_path / "cut"
    encoded, calls = writing.encoded, []

    def stop(image):
        calls.append(image)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return encoded(image)

    flags = flags_in_this_process(noisy, target)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "encoded", stop)
        assert dcal(*flags).status == 130
    assert [path.name for path in target.glob("*.tar*")] == ["train-000000.tar"]
    assert archives_of(target)["train-000000.tar"] == archives_of(tmp_path / "whole")["train-000000.tar"]
    # What is there looks like no dataset.
    assert_refused(
        dcal("train", *TASKS["fgvc"], "--dataset=shards", f"--data_root={target}"), "unfinished", "run it again"
    )
    assert_refused(
        dcal("train", *TASKS["fgvc"], "--dataset=shards", f"--data_root={target}/train-000000.tar"), "unfinished"
    )
    (target / "train-000001.tar.tmp").write_bytes(b"of one that was killed")
    (target / "train-000009.tar").write_bytes(b"of more images than there are now")
    assert dcal(*flags).status == 0
    assert archives_of(target) == archives_of(tmp_path / "whole")
    assert not list(target.glob("*.tmp"))


def test_a_killed_command(noisy, tmp_path, dcal):
    """By SIGKILL, in the middle: what has its name is whole."""
    target = tmp_path / "cut"
    code = """
import os, signal, sys
from dual_cross_attention.cli import main
from dual_cross_attention.data.shards import writing
encoded, calls = writing.encoded, []
def stop(image):
    calls.append(image)
    if len(calls) == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    return encoded(image)
writing.encoded = stop
main(sys.argv[1:])
"""
    flags = flags_in_this_process(noisy, target)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", code, *flags], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert (target / "train-000001.tar.tmp").exists()
    assert dcal(*flags).status == 0
    shard(dcal, "fgvc", noisy, tmp_path / "whole", "--shard_mb", 1)
    assert archives_of(target) == archives_of(tmp_path / "whole") and not list(target.glob("*.tmp"))


def test_unreadable_images_are_left_out(dcal, make_images, tmp_path):
    root = make_images(tmp_path / "pictures")
    broken = [root / "train" / "bee" / "03.png", root / "val" / "cat" / "01.png"]
    for path in broken:
        path.write_bytes(b"no image")
    lines = shard(dcal, "fgvc", root, tmp_path / "shards")
    for path in broken:
        assert sum(f"left out: {path}: " in line for line in lines) == 1
    assert "2 images" in lines[-4] and "left out" in lines[-4]
    data = load_fgvc("shards", tmp_path / "shards")
    assert (len(data.train), len(data.test)) == (35, 17)
    flags = ["shard", "--dataset=folder", f"--data_root={root}", "--num_workers=0"]
    assert_refused(
        dcal(*flags, f"--output_dir={tmp_path / 'strict'}", "--max_bad_images=1"),
        "--max_bad_images allows 1",
        broken[0],
    )


def test_formats_that_are_not_what_a_file_is_called(dcal, make_images, tmp_path):
    """Some cameras put a second image behind a JPEG, which PIL calls MPO; it stays as it is."""
    root = make_images(tmp_path / "pictures")
    images = [Image.new("RGB", (20, 10), color) for color in ("red", "blue")]
    path = root / "val" / "cat" / "00.jpg"
    images[0].save(path, "MPO", save_all=True, append_images=images[1:])
    images[0].save(root / "val" / "cat" / "000.png", "WEBP")
    (root / "val" / "cat" / "odd name.tar.gz.png").write_bytes((root / "val" / "cat" / "01.png").read_bytes())
    shard(dcal, "fgvc", root, tmp_path / "shards")
    test = load_fgvc("shards", tmp_path / "shards").test
    assert len(test) == 21
    stored = {image.open().read(): image.name.partition(".")[2] for image in test.images}
    assert stored[path.read_bytes()] == "jpg"
    assert stored[(root / "val" / "cat" / "000.png").read_bytes()] == "webp"


def test_an_identity_without_a_readable_image(dcal, tmp_path):
    crowd = write_crowd(tmp_path / "crowd")
    for path in (crowd / "train" / "2").iterdir():
        path.write_bytes(b"")
    shard(dcal, "reid", crowd, tmp_path / "shards")
    assert json.loads((tmp_path / "shards" / DESCRIPTION).read_text())["classes"] == [*"013456789"]
    flags = [*TASKS["reid"], "--dataset=shards", f"--data_root={tmp_path / 'shards'}", "--epochs=1"]
    assert dcal("train", *flags, "--output_dir", tmp_path / "run").status == 0


def test_folders_that_hold_something_else(dcal, images, crowd, tmp_path):
    flags = ["shard", "--dataset=folder", "--num_workers=0"]
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.tar").touch()
    before = dcal(*flags, f"--data_root={images}", f"--output_dir={tmp_path / 'others'}")
    assert_refused(before, "archives", "did not write", "a.tar")
    assert [path.name for path in (tmp_path / "others").glob("[!.]*")] == ["a.tar"]
    shard(dcal, "fgvc", images, tmp_path / "shards")
    there = archives_of(tmp_path / "shards")
    other = [f"--output_dir={tmp_path / 'shards'}"]
    assert_refused(
        dcal(*flags, "--task=reid", f"--data_root={crowd}", *other), "something else", "task: fgvc there, reid here"
    )
    assert_refused(dcal(*flags, f"--data_root={images}", *other, "--shard_mb=1"), "something else", "shard_mb")
    assert_refused(dcal("shard", *other, "--num_workers=0"), "something else", "dataset: folder there, toy here")
    assert archives_of(tmp_path / "shards") == there
    assert_refused(
        dcal("train", *TASKS["reid"], "--dataset=shards", f"--data_root={tmp_path / 'shards'}"), "--task fgvc"
    )
    (tmp_path / "shards" / DESCRIPTION).write_text('{"task": "fgvc", "archives": {"train": ["../a.tar"]}}')
    assert_refused(
        dcal("train", *TASKS["fgvc"], "--dataset=shards", *[f"--data_root={tmp_path / 'shards'}"]), "expected what dcal"
    )


def test_a_full_disk(dcal, noisy, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    flags = [
        "shard",
        "--dataset=folder",
        f"--data_root={noisy}",
        f"--output_dir={tmp_path / 'full'}",
        "--num_workers=0",
    ]
    assert_refused(dcal(*flags), tmp_path / "full", "No space left on device", "the same command")
    assert not list((tmp_path / "full").glob("*.tar*"))


def test_a_decoder_that_crashes(dcal, images, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "encoded", die)  # inherited by the workers, which are forked
    flags = ["shard", "--dataset=folder", f"--data_root={images}", f"--output_dir={tmp_path}", "--num_workers=1"]
    assert_refused(dcal(*flags), "has died", "dcal check-data")


def die(_):
    os._exit(1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["expected --output_dir"]),
        (["--output_dir=x", "--shard_mb=0"], ["shard_mb", "at least 1, got 0"]),
        (["--output_dir=x", "--num_workers=-1"], ["num_workers", "at least 0, got -1"]),
        (["--output_dir=x", "--max_bad_images=-1"], ["max_bad_images", "at least 0, got -1"]),
        (["--output_dir=x", "--dataset=birds"], ["unknown dataset 'birds'"]),
        (["--output_dir=x", "--dataset=cub"], ["cub needs data_root"]),
        (["--output_dir=x", "word"], ["unexpected word 'word'"]),
        (["--outputdir=x"], ["unknown flag --outputdir: did you mean --output_dir?"]),
    ],
)
def test_what_cannot_be_written(dcal, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    assert_refused(dcal("shard", *flags), *words)
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_a_file(dcal, images, tmp_path):
    (tmp_path / "file").touch()
    flags = ["shard", "--dataset=folder", f"--data_root={images}", f"--output_dir={tmp_path / 'file'}"]
    assert_refused(dcal(*flags), "cannot write to", tmp_path / "file")


def test_help(dcal):
    outcome = dcal("shard", "--help")
    assert outcome.status == 0 and "WebDataset" in outcome.out and "--shard_mb" in outcome.out
    assert "  shard " in dcal().out
