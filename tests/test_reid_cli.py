"""Re-identification from the command line, end to end: training, evaluation, re-ranking, rankings, bad input."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dual_cross_attention.data import load_reid
from dual_cross_attention.inference.model_files import read_model
from dual_cross_attention.tasks import ReIDTask
from dual_cross_attention.tasks import reid_data as reid
from dual_cross_attention.training import run as training
from dual_cross_attention.training import setup
from tests.helpers import BRANCHES, any_says, assert_refused, rows_of

TESTED = ("dan", "eva", "bob")


@pytest.fixture
def crowd(people) -> Path:
    return people


@pytest.fixture
def flags(small_reid) -> list[str]:
    return small_reid


@pytest.mark.parametrize("ablation", BRANCHES)
def test_a_run_and_its_evaluation(dcal, flags, tmp_path, ablation):
    run, result = tmp_path / "run", tmp_path / "result.json"
    outcome = dcal("train", *flags, "--ablation", ablation, "--output_dir", run)
    assert (outcome.status, outcome.err) == (0, "")
    assert (
        "folder: 4 identities, 24 training images; 6 queries of 3 identities, 12 gallery images, 2 cameras"
        in outcome.out
    )
    has = BRANCHES[ablation]
    retrieved = {"mAP", "rank1", "rank5", "rank10"} | {
        f"{name}_{b}" for b in has if b != "pwca" for name in ("mAP", "rank1")
    }
    weights = {f"train/w_{branch}" for branch in has} if len(has) > 1 else set()
    for row in rows_of(run):
        assert {name for name in row if name.startswith("val/")} == {f"val/{name}" for name in retrieved}
        assert {name for name in row if name.startswith("train/w_")} == weights
        assert {name for name in row if name.startswith("train/loss_")} == {f"train/loss_{branch}" for branch in has}
        assert all(math.isfinite(value) for value in row.values())

    evaluated = dcal("eval", run, "--json", result)
    assert evaluated.status == 0
    assert "mAP %" in evaluated.out and "rank-10 %" in evaluated.out
    given = json.loads(result.read_text())
    best = max(rows_of(run), key=lambda row: row["val/mAP"])
    assert given["mAP"] == pytest.approx(best["val/mAP"])
    assert (given["images"], given["unreadable"], given["dataset"]) == (18, 0, "folder")
    assert (given["rerank"], given["valid_queries"]) == (False, 6) and "6 queries with a match" in evaluated.out
    saved = read_model(run)
    assert saved.classes == ["anna", "bob", "cleo", "dan"] and saved.config.task == "reid"


def test_rankings_are_those_of_the_model_and_rerank_changes_them(dcal, flags, crowd, tmp_path):
    run = tmp_path / "run"
    assert dcal("train", *flags, "--output_dir", run).status == 0
    results, rankings = {}, {}
    for name, extra in (("plain", ()), ("reranked", ("--rerank",))):
        file, ranking = tmp_path / f"{name}.json", tmp_path / f"{name}.jsonl"
        outcome = dcal("eval", run, *extra, "--json", file, "--save_ranking", ranking)
        assert outcome.status == 0, outcome.err
        results[name] = json.loads(file.read_text())
        rankings[name] = [json.loads(line) for line in ranking.read_text().splitlines()]
    assert rankings["plain"] != rankings["reranked"]
    assert not list(tmp_path.glob("*.tmp"))
    for name, lines in rankings.items():
        assert [line["query"] for line in lines] == [
            f"query/{person}/{camera}_0.png" for person in sorted(TESTED) for camera in ("door", "hall")
        ]
        first_hits, precisions = [], []
        for line in lines:
            _, person, image = line["query"].split("/")
            own_camera = {f"gallery/{person}/{image.split('_')[0]}_{i}.png" for i in range(2)}
            assert {*line["gallery"]} == {
                str(path.relative_to(crowd)) for path in (crowd / "gallery").rglob("*.png")
            } - own_camera
            assert line["distances"] == sorted(line["distances"])
            assert line["matches"] == [file.split("/")[1] == person for file in line["gallery"]]
            ranks = [rank for rank, match in enumerate(line["matches"], 1) if match]
            first_hits.append(ranks[0] == 1)
            precisions.append(sum(n / rank for n, rank in enumerate(ranks, 1)) / len(ranks))
        # What the file says is what the metrics are of.
        assert results[name]["mAP"] == pytest.approx(100 * sum(precisions) / len(precisions))
        assert results[name]["rank1"] == pytest.approx(100 * sum(first_hits) / len(first_hits))


def test_the_source_of_cameras_is_printed_by_every_command(dcal, flags, crowd, tmp_path):
    data = ["--task=reid", "--dataset=folder", f"--data_root={crowd}"]
    said = 'before its first "_": door ('
    outcomes = [
        dcal("train", *flags, "--epochs=1", "--output_dir", tmp_path / "run"),
        dcal("eval", tmp_path / "run"),
        dcal("check-data", *data, "--num_workers=0"),
        dcal("shard", *data, "--output_dir", tmp_path / "shards"),
    ]
    for outcome in outcomes:
        assert outcome.status == 0 and said in outcome.out, outcome
        assert "folder: 2 identities" in outcome.out or outcome is outcomes[1]
    evaluated = dcal("eval", tmp_path / "run", "--dataset=shards", f"--data_root={tmp_path / 'shards'}")
    assert evaluated.status == 0 and any_says(evaluated.out.splitlines(), "cameras: 2 in query", "KEY.json: 0 (")
    as_json = dcal("check-data", *data, "--num_workers=0", "--json", "-")
    assert as_json.status == 0 and json.loads(as_json.out)["splits"]  # nothing else is on the standard output


def test_retrieval_can_be_changed_at_evaluation(dcal, flags, tmp_path, made):
    assert dcal("train", *flags, "--epochs=1", "--output_dir", tmp_path / "run").status == 0
    seen = made((reid, "ReIDTask"))
    ranking = tmp_path / "ranking.jsonl"
    outcome = dcal(
        "eval", tmp_path / "run", "--feature=after_neck", "--distance=cosine", "--normalize_features=false",
        "--save_ranking", ranking, "--ranking_depth=3",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    task = seen["ReIDTask"]
    assert (task.after_neck, task.distance, task.normalize_features) == (True, "cosine", False)
    assert {len(json.loads(line)["gallery"]) for line in ranking.read_text().splitlines()} == {3}


def test_settings_reach_what_they_are_for(dcal, flags, tmp_path, made):
    made = made(
        (reid, "ReIDTask"),
        (reid, "train_loader"),
        (reid, "reid_train_transform"),
        (training, "Trainer"),
        (setup, "build_optimizer"),
    )
    outcome = dcal(
        "train", *flags, "--epochs=1", "--label_smoothing=0.125", "--weight_bound=1.5", "--triplet_margin=0.3",
        "--feature=after_neck", "--distance=cosine", "--normalize_features=false", "--flip=0.25", "--padding=3",
        "--erasing=0.75", "--pixel_stats=backbone", "--batch_size=6", "--images_per_identity=3", "--lr=null",
        "--gradient_accumulation_steps=2", "--bias_lr_factor=3", "--w_lr_factor=0.5", "--output_dir", tmp_path,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    task = made["ReIDTask"]
    assert (task.identity_loss.label_smoothing, task.weighting.bound) == (0.125, 1.5)
    assert task.identity_loss.margin == 0.3
    assert (task.after_neck, task.distance, task.normalize_features) == (True, "cosine", False)
    sampler = made["train_loader"].sampler
    assert (sampler.identities_per_batch, sampler.images_per_identity) == (2, 3)
    flip, crop, erase = (made["reid_train_transform"].transforms[i] for i in (2, 3, 6))
    assert (flip.p, crop.padding, erase.p) == (0.25, [3, 3, 3, 3], 0.75)
    peak = 0.064 * 6 * 2 / 512
    groups = made["build_optimizer"].param_groups
    assert {round(group["initial_lr"] * group["lr_scale"] / peak, 6) for group in groups} == {1.0, 3.0, 0.5}
    assert made["Trainer"].config.gradient_accumulation_steps == 2


def test_every_epoch_has_an_order_of_its_own_and_a_run_repeats(dcal, flags, tmp_path, monkeypatch):
    seen = []
    step = ReIDTask.training_step
    monkeypatch.setattr(
        ReIDTask, "training_step", lambda task, batch: (seen.append(batch["labels"].tolist()), step(task, batch))[1]
    )
    for name in ("one", "other"):
        assert dcal("train", *flags, "--output_dir", tmp_path / name).status == 0
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert seen[: half // 2] != seen[half // 2 : half]
    ours, theirs = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "other"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_resumes(dcal, flags, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert dcal("train", *flags, "--epochs=3", "--lr=1e-3", "--output_dir", whole).status == 0
    assert dcal("train", *flags, "--epochs=3", "--lr=1e-3", "--output_dir", broken).status == 0
    # As if the power had been cut after the second epoch.
    for path in (broken / "checkpoints" / "epoch_0003").glob("*"):
        path.unlink() if path.is_file() else None
    outcome = dcal("train", *flags, "--epochs=3", "--lr=1e-3", "--output_dir", broken)
    assert outcome.status == 0 and "resumed after epoch 2" in outcome.out
    ours, theirs = (load_file(run / "last.safetensors") for run in (whole, broken))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_only_the_test_side_is_needed_to_evaluate(dcal, flags, crowd, tmp_path):
    assert dcal("train", *flags, "--output_dir", tmp_path / "run").status == 0
    there = tmp_path / "there"
    there.mkdir()
    for side in ("query", "gallery"):
        (there / side).symlink_to(crowd / side)
    outcome = dcal("eval", tmp_path / "run", "--data_root", there)
    assert outcome.status == 0, outcome.err
    # And other people by other cameras: the drawn set.
    outcome = dcal("eval", tmp_path / "run", "--dataset", "toy", "--num_workers", 0)
    assert outcome.status == 0, outcome.err
    assert "toy, 552 test images" in outcome.out


def test_unreadable_images_are_named_counted_and_left_out(dcal, flags, make_people, tmp_path):
    root = make_people(tmp_path / "crowd")
    broken = [root / "train/bob/hall_1.png", root / "query/eva/door_0.png", root / "gallery/eva/hall_1.png"]
    for path in broken:
        path.write_bytes(b"not an image")
    outcome = dcal("train", *flags, f"--data_root={root}", "--output_dir", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    for path in broken:
        assert (
            len([line for line in outcome.out.splitlines() if "unreadable image, " in line and f"{path}" in line]) == 1
        )
    assert "3 images could not be read" in outcome.out
    outcome = dcal("eval", tmp_path / "run", "--save_ranking", tmp_path / "ranking.jsonl")
    assert outcome.status == 0 and "2 images could not be read" in outcome.out
    lines = [json.loads(line) for line in (tmp_path / "ranking.jsonl").read_text().splitlines()]
    assert len(lines) == 5 and not any("gallery/eva/hall_1.png" in line["gallery"] for line in lines)


def test_invalid_input_is_an_error_of_one_line(dcal, flags, crowd, make_people, tmp_path):
    run = tmp_path / "run"
    assert_refused(dcal("train", *flags, "--batch_size=16"), "8 identities", "there are 4", "--batch_size 8 ")
    assert_refused(dcal("train", *flags, "--dataset=cub"), "unknown dataset 'cub'", "market1501")
    assert_refused(dcal("train", *flags, "--download", "true"), "cannot be downloaded")
    assert_refused(dcal("train", *flags, "--data_root=nowhere"), "folder needs data_root", "nowhere", "does not exist")
    assert_refused(
        dcal("train", "--task=reid", "--dataset=market1501"), "market1501 needs data_root", "bounding_box_train"
    )
    lonely = make_people(tmp_path / "lonely")
    for path in (lonely / "gallery").rglob("door_*"):
        path.unlink()
    for path in (lonely / "query").rglob("door_*"):
        path.unlink()
    assert_refused(
        dcal("train", *flags, "--cameras=name", f"--data_root={lonely}"), "none of the 3 queries", "another camera"
    )
    assert dcal("train", *flags, "--output_dir", run).status == 0
    assert_refused(dcal("eval", run, "--save_ranking", "no/where.jsonl"), "--save_ranking", "'no'")
    assert_refused(dcal("eval", run, "--save_ranking", tmp_path), "--save_ranking", "a file")
    assert_refused(dcal("eval", run, "--save_ranking", "-"), "--save_ranking", "a file")
    assert_refused(dcal("eval", run, "--ranking_depth", 0), "--ranking_depth", "at least 1", "got 0")
    assert_refused(dcal("train", *flags, "--images_per_identity=1"), "images_per_identity", "at least 2")
    assert_refused(dcal("eval", run, "--dataset", "cub"), "unknown dataset 'cub'")
    assert_refused(dcal("eval", run, "--dataset", "market1501"), "market1501 needs data_root")


def test_retrieval_options_are_refused_for_classes(dcal, small, tmp_path):
    assert dcal("train", *small, "--epochs=1", "--output_dir", tmp_path).status == 0
    for option in (["--rerank"], ["--save_ranking", tmp_path / "ranking.jsonl"], ["--distance", "cosine"]):
        assert_refused(dcal("eval", tmp_path, *option), f"{option[0]} is for retrieval", "fgvc")


@pytest.mark.slow
def test_two_processes(dcal, flags, tmp_path):
    """Under torchrun: whole P x K batches to each; each test image once, though one process has no batch of them."""
    run, root = tmp_path / "run", Path(__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", root / "train.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*command, *flags, "--lr=null", f"--output_dir={run}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("epoch ") for line in done.stdout.splitlines()) == 2
    rows = rows_of(run)
    assert rows[0]["lr"] == pytest.approx(0.064 * 16 / 512 / 2)  # half way down the cosine of the effective batch
    best = max(rows, key=lambda row: row["val/mAP"])
    result = json.loads(dcal("eval", run, "--json", "-").out)
    for name in ("mAP", "mAP_sa", "mAP_glca", "rank1"):
        assert result[name] == pytest.approx(best[f"val/{name}"], abs=1e-4)


MARKET = Path(__file__).parents[2] / "shared" / "data" / "Market-1501-v15.09.15"


@pytest.mark.skipif(not MARKET.is_dir(), reason="needs the project's images of Market-1501")
def test_raw_pixels_of_real_people_score_as_a_loop_does():
    """Real file names, cameras and queries without a match: mAP of raw pixels by our metrics and by the definition."""
    from dual_cross_attention import retrieval_metrics
    from dual_cross_attention.data import read_image, test_transform

    data = load_reid("market1501", MARKET, train=False)
    transform = test_transform((16, 8), (16, 8), (0.5,) * 3, (0.5,) * 3)
    sides = []
    for side in (data.query, data.gallery):
        chosen = [i for i, identity in enumerate(side.identities) if identity < 200]
        features = torch.stack([transform(read_image(side.images[i])).flatten() for i in chosen])
        sides.append((features, [side.identities[i] for i in chosen], [side.cameras[i] for i in chosen]))
    (query, query_ids, query_cameras), (gallery, gallery_ids, gallery_cameras) = sides
    found = retrieval_metrics(query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras)
    precisions = []
    for q in range(len(query)):
        distances = (gallery.double() - query[q].double()).square().sum(1).tolist()
        kept = [
            g for g in range(len(gallery)) if (gallery_ids[g], gallery_cameras[g]) != (query_ids[q], query_cameras[q])
        ]
        kept.sort(key=lambda g: distances[g])
        ranks = [rank for rank, g in enumerate(kept, 1) if gallery_ids[g] == query_ids[q]]
        if ranks:
            precisions.append(sum(n / rank for n, rank in enumerate(ranks, 1)) / len(ranks))
    assert found.num_valid_queries == len(precisions) < len(query)
    assert found.mAP == pytest.approx(sum(precisions) / len(precisions), abs=1e-9)
