"""Training and evaluation from archives, end to end."""

import io
import json
import os
import subprocess
import sys
import tarfile

import pytest

from dual_cross_attention.data import load_fgvc
from dual_cross_attention.tasks import FGVCTask, ReIDTask
from tests.commands.sharded import ROOT, TASKS, shard
from tests.helpers import assert_refused, assert_same_run, metrics_rows


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
    (tmp_path / "shards" / "train-000000.tar").unlink()  # an evaluation does not read it
    assert dcal("eval", tmp_path / "run", "--save_ranking", tmp_path / "ranking.jsonl").status == 0
    lines = [json.loads(line) for line in (tmp_path / "ranking.jsonl").read_text().splitlines()]
    assert [line["query"] for line in lines] == [f"query-000000.tar/{number:06}.png" for number in range(6)]
    assert all(name.startswith("gallery-000000.tar/") for line in lines for name in line["gallery"])
