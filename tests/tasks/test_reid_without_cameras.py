"""The re-identification task without cameras, and leave-one-out, against literal loops."""

import pytest
import torch
from torch.nn import functional as F

from dual_cross_attention import InputError, create_model
from dual_cross_attention.inference.calibrate_reid import measure_distances
from dual_cross_attention.inference.evaluation_loop import run_eval_steps
from dual_cross_attention.tasks import ReIDTask, RetrievalSplit

TINY = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": (32, 16)}
IMAGES, QUERIES, UNREADABLE = 24, 8, (2, 13)


def make_task(split) -> ReIDTask:
    torch.manual_seed(0)
    return ReIDTask(create_model("vit_tiny_patch16_224", 4, task="reid", ablation="sa_only", **TINY), split)


def make_split(name: str) -> RetrievalSplit:
    generator = torch.Generator().manual_seed(2)
    identities = torch.randint(4, (IMAGES,), generator=generator)
    cameras = torch.randint(3, (IMAGES,), generator=generator)
    files = torch.arange(IMAGES)
    files[QUERIES : QUERIES + 3] = files[:3]  # queries that are in the gallery
    return {
        "files": RetrievalSplit(identities, None, QUERIES, files),
        "one out": RetrievalSplit(identities, None, IMAGES, None, leave_one_out=True),
        "one out by files": RetrievalSplit(identities, None, IMAGES, files, leave_one_out=True),
        "one out and cameras": RetrievalSplit(identities, cameras, IMAGES, None, leave_one_out=True),
    }[name]


def is_hidden(split: RetrievalSplit, query: int, other: int) -> bool:
    own_file = query == other if split.files is None else split.files[query] == split.files[other]
    own_camera = split.cameras is not None and split.cameras[query] == split.cameras[other]
    return bool(own_file or (own_camera and split.identities[query] == split.identities[other]))


def batches():
    images = torch.randn(IMAGES, 3, 32, 16, generator=torch.Generator().manual_seed(1))
    valid = torch.tensor([number not in UNREADABLE for number in range(IMAGES)])
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(3))
    return images, [
        {"images": images[part], "labels": torch.full_like(part, -1), "indices": part, "valid": valid[part]}
        for part in order.split(7)
    ]


@pytest.mark.parametrize("name", ["files", "one out", "one out by files", "one out and cameras"])
def test_metrics_and_rankings_by_the_definition(name):
    split = make_split(name)
    task = make_task(split)
    images, parts = batches()
    run_eval_steps(task, parts)
    features = F.normalize(task.model.embed(images).double(), dim=1)
    readable = [number for number in range(IMAGES) if number not in UNREADABLE]
    queries = [number for number in readable if number < split.num_queries]
    gallery = readable if split.leave_one_out else [number for number in readable if number >= QUERIES]
    rankings, precisions, firsts = {}, [], []
    for query in queries:
        seen = [g for g in gallery if not is_hidden(split, query, g)]
        rankings[query] = sorted(seen, key=lambda g, q=query: float((features[q] - features[g]).square().sum()))
        hits = [rank for rank, g in enumerate(rankings[query], 1) if split.identities[g] == split.identities[query]]
        if hits:
            precisions.append(sum(n / rank for n, rank in enumerate(hits, 1)) / len(hits))
            firsts.append(hits[0])
    found = task.compute_metrics()
    assert found["mAP"] == pytest.approx(100 * sum(precisions) / len(precisions), abs=1e-4)
    assert found["rank1"] == pytest.approx(100 * sum(first == 1 for first in firsts) / len(firsts))
    assert found["valid_queries"] == len(firsts)
    ranked = {query: order.tolist() for query, order, _ in task.rank(task.gather_features())}
    assert ranked == rankings


@pytest.mark.parametrize("name", ["files", "one out", "one out by files"])
def test_calibration_searches_as_the_metrics_do(name):
    split = make_split(name)
    task = make_task(split)
    images, parts = batches()
    run_eval_steps(task, parts)
    found = measure_distances(task.gather_features(), task, left_out={3})
    table = found.tables["together"]
    features = F.normalize(task.model.embed(images).double(), dim=1)
    kept = [number for number in range(IMAGES) if number not in UNREADABLE and split.identities[number] != 3]
    queries = [number for number in kept if number < split.num_queries]
    gallery = kept if split.leave_one_out else [number for number in kept if number >= QUERIES]
    assert found.gallery_images == len(gallery) and found.probe_ids.tolist() == split.identities[queries].tolist()
    for row, query in enumerate(queries):
        for column, identity in enumerate(table.identities.tolist()):
            others = [g for g in gallery if split.identities[g] == identity and not is_hidden(split, query, g)]
            nearest = min((float((features[query] - features[g]).norm()) for g in others), default=float("inf"))
            assert table.distances[row, column].item() == pytest.approx(nearest, abs=1e-5)


def test_leave_one_out_needs_two_images_of_an_identity():
    task = make_task(RetrievalSplit(torch.arange(IMAGES), None, IMAGES, None, leave_one_out=True))
    run_eval_steps(task, batches()[1])
    with pytest.raises(InputError, match="own file only"):
        task.compute_metrics()
