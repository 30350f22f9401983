"""Several processes compute what one does, step by step, and a run continues with more or fewer of them.

They are started by torchrun and talk by gloo, as users' would.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training.checkpointing.checkpoints import STATE, list_checkpoints, verify
from tests.helpers import assert_says

ROOT = Path(__file__).parents[2]
LATE = ["--glca_start=0.5", "--pwca_start=0.4", "--pwca_warmup=0.5", "--pwca_every=2", "--glca_blocks=2"]
MEASURED = ("train/images_per_second", "peak_memory_mb")  # of the machine, not of the training


@pytest.fixture(scope="module", params=["fgvc", "reid"])
def flags(request, small, small_reid):
    """A short training of either task, whose last step of an epoch has fewer micro-batches than the others."""
    if request.param == "fgvc":
        return [*small, "--drop_path_rate=0.2"]
    return [*small_reid, "--drop_path_rate=0.2", "--feature=after_neck"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`run(processes, flags, **environment)` → the finished process, and the run's folder.

    With WAIT_IN, the launcher gets a SIGTERM as soon as every process waits there.
    """

    def start(processes, flags, folder=None, restarts=0, **environment):
        folder = folder or tmp_path_factory.mktemp("run")
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--max-restarts={restarts}"]
        launcher = [*torchrun, f"--nproc_per_node={processes}"] if processes > 1 else []
        command = [sys.executable, *launcher, ROOT / "tests/training/launched.py", *flags, f"--output_dir={folder}"]
        with subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            if "WAIT_IN" in environment:
                while len(list(Path(environment["WAIT_IN"]).iterdir())) < processes and process.poll() is None:
                    time.sleep(0.05)
                process.send_signal(signal.SIGTERM)
            try:
                said = process.communicate(timeout=300)
            except subprocess.TimeoutExpired:
                process.terminate()
                raise
        return subprocess.CompletedProcess(command, process.returncode, *said), RunFolder(folder)

    return start


@pytest.fixture(scope="module")
def every_step(run, flags):
    """`every_step(processes, parallel)` → the state after every step, by the checkpoint's name; and the rows."""
    done = {}

    def train(processes, parallel="ddp"):
        if (processes, parallel) not in done:
            more = [f"--gradient_accumulation_steps={2 // processes}", f"--parallel={parallel}"]
            outcome, folder = run(processes, [*flags, *more, "--checkpoint_minutes=0"], KEEP_ALL="1")
            assert outcome.returncode == 0, outcome.stderr
            assert "Warning: " not in outcome.stderr
            states = {
                path.name: dict(tensors_of(torch.load(path / STATE, weights_only=True)))
                for path in list_checkpoints(folder.checkpoints)
            }
            done[processes, parallel] = states, folder.read_metrics()
        return done[processes, parallel]

    return train


@pytest.fixture
def in_pieces(tmp_path_factory):
    """The folder of a run whose memory has run out before, in training and in evaluation: 4 pieces to a batch."""
    folder = tmp_path_factory.mktemp("in pieces")
    for name in ("memory.json", "eval_memory.json"):
        (folder / name).write_text(json.dumps({"device": "cpu", "pieces": 4}))
    return folder


def tensors_of(state, name=""):
    """All leaves of nested dicts, as (path, value)."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from tensors_of(value, f"{name}/{key}")
    else:
        yield name, state


def without_key_biases(state):
    """A shift of all keys changes no attention: their gradient is rounding, which AdamW makes steps of full size of."""
    return {name: value for name, value in state.items() if "qkv.bias" not in name}


def assert_same_states(ours, expected, tolerance):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[name], value, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        elif name == "/optimizer/param_groups":  # whose tuples come back as lists
            for group, other in zip(ours[name], value, strict=True):
                assert json.dumps(group | {"fused": True}) == json.dumps(other | {"fused": True})
        else:
            assert ours[name] == value, name


def assert_same_rows(ours, expected, tolerance):
    assert len(ours) == len(expected) > 0
    for row, other in zip(ours, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - set(MEASURED):
            assert row[name] == pytest.approx(other[name], abs=tolerance, rel=tolerance), name


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_compute_what_one_does(every_step, parallel):
    """After every step: weights, loss weights, the optimizer's state and the necks' running statistics."""
    expected, expected_rows = every_step(1)
    ours, rows = every_step(2, parallel)
    assert ours.keys() == expected.keys()
    assert len(expected) >= 6
    for name in expected:
        assert_same_states(ours[name], expected[name], 1e-5)
    assert_same_rows(rows, expected_rows, 1e-4)
    first, *_, last = (state["/task/model.backbone.blocks.0.attn.qkv.weight"] for state in expected.values())
    assert (first - last).abs().max() > 1e-3  # so that 1e-5 means something


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_branches_that_start_late(run, flags, parallel):
    """Before and after their starts, after every step; with DDP, GLCA's parameters have no gradient at first."""
    done = {}
    for processes in (1, 2):
        more = [f"--gradient_accumulation_steps={2 // processes}", f"--parallel={parallel}", *LATE]
        outcome, folder = run(processes, [*flags, *more, "--checkpoint_minutes=0"], KEEP_ALL="1")
        assert outcome.returncode == 0, outcome.stderr
        assert "Warning: " not in outcome.stderr
        states = {
            path.name: dict(tensors_of(torch.load(path / STATE, weights_only=True)))
            for path in list_checkpoints(folder.checkpoints)
        }
        done[processes] = states, folder.read_metrics()
    (expected, expected_rows), (ours, rows) = done[1], done[2]
    assert ours.keys() == expected.keys()
    for name in expected:
        # A fresh GLCA has tiny gradients of its queries, whose rounding AdamW magnifies; a step is up to 1e-3.
        assert_same_states(*map(without_key_biases, (ours[name], expected[name])), 1e-4)
    assert_same_rows(rows, expected_rows, 1e-2)
    w = [state["/task/weighting.w"].tolist() for state in expected.values()]
    assert w[0][1:] == [0, 0] and w[0][0] and all(w[-1])
    moved = [before[2] != after[2] for before, after in pairwise(w)]
    assert 0 < sum(moved) < len(moved) - moved.index(True)  # PWCA's stays in every second step from its start on


@pytest.mark.slow
def test_pieces_of_sharded_batches(run, small, tmp_path_factory, in_pieces):
    """The last batches, of 6 and 2 images, are too short for 4 chunks; no rank waits for another."""
    flags = [*small, "--epochs=1", "--batch_size=10", "--eval_batch_size=16", "--drop_path_rate=0.2"]
    states, rows = [], []
    for processes in (1, 2):
        folder = shutil.copytree(in_pieces, tmp_path_factory.mktemp("run") / "run")
        more = [f"--gradient_accumulation_steps={2 // processes}", "--parallel=fsdp"]
        outcome, folder = run(processes, [*flags, *more], folder)
        assert outcome.returncode == 0, outcome.stderr
        (last,) = list_checkpoints(folder.checkpoints)
        states.append(dict(tensors_of(torch.load(last / STATE, weights_only=True))))
        rows.append(folder.read_metrics())
    assert_same_states(states[1], states[0], 1e-5)
    assert_same_rows(rows[1], rows[0], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_memory_that_runs_out_in_one_process(run, small, tmp_path, rank):
    """All ranks split their batches, in training and in evaluation, with the result of one process with such pieces."""
    flags = [*small, "--eval_batch_size=4", "--drop_path_rate=0.2"]
    limits = {"MEMORY": f"{rank} 4 2 1"}
    states, rows = [], []
    for number, processes in enumerate((2, 1)):
        folder = tmp_path / f"{number}"
        if number:
            folder.mkdir()
            (folder / "memory.json").write_text(json.dumps({"device": "cpu", "pieces": 2}))
            limits = {}
        more = [f"--gradient_accumulation_steps={2 // processes}"]
        outcome, folder = run(processes, [*flags, *more], folder, **limits)
        assert outcome.returncode == 0, outcome.stderr
        assert outcome.stdout.count("4 images at a time instead of 8") == processes - 1
        assert outcome.stdout.count("2 images at a time instead of 4") == processes - 1
        last = list_checkpoints(folder.checkpoints)[-1]
        states.append(dict(tensors_of(torch.load(last / STATE, weights_only=True))))
        rows.append(folder.read_metrics())
    assert_same_states(*states, 1e-5)
    assert_same_rows(*rows, 1e-4)


@pytest.mark.slow
def test_memory_that_runs_out_late_is_met_by_a_restart(run, small, tmp_path):
    """When the others are in the middle of a backward pass, they cannot be told."""
    outcome, folder = run(2, [*small, "--epochs=3"], tmp_path / "run", restarts=1, MEMORY="1 4 100 5")
    assert outcome.returncode == 0, outcome.stderr
    assert "half of the images" in outcome.stderr
    assert json.loads(folder.memory.read_text())["pieces"] == 2
    assert [row["epoch"] for row in folder.read_metrics()] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [((1, "ddp"), (2, "ddp")), ((2, "ddp"), (1, "ddp")), ((2, "ddp"), (3, "fsdp")), ((2, "fsdp"), (1, "ddp"))],
    ids=["1 to 2", "2 to 1", "2 to 3, sharded", "2, sharded, to 1"],
)
def test_a_run_resumes_with_another_number_of_ranks(every_step, flags, run, before, after):
    """Interrupted after the second epoch's first step, by a signal to the last process only."""
    expected, expected_rows = every_step(1)
    steps = list(expected).index("epoch_0001")
    processes, parallel = before
    more = [f"--gradient_accumulation_steps={2 // processes}", f"--parallel={parallel}"]
    outcome, folder = run(processes, [*flags, *more], SIGNAL_AT=f"{processes - 1} {steps + 1} SIGTERM")
    assert outcome.returncode != 0
    assert "same command resumes" in outcome.stderr
    assert [path.name for path in list_checkpoints(folder.checkpoints)][-1] == f"epoch_0001_step_{steps + 1:08d}"

    processes, parallel = after
    outcome, folder = run(processes, [*flags, more[0], f"--parallel={parallel}"], folder.path)
    assert outcome.returncode == 0, outcome.stderr
    assert f"resumed after epoch 1, step 1 of {steps}" in outcome.stdout
    last = list_checkpoints(folder.checkpoints)[-1]
    state = dict(tensors_of(torch.load(last / STATE, weights_only=True)))
    assert_same_states(state, expected[last.name], 1e-5)
    assert_same_rows(folder.read_metrics(), expected_rows, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_is_killed_is_started_again(every_step, flags, run, rank):
    """`torchrun --max-restarts`: all processes start again, from the last checkpoint, and end with the same bits."""
    expected, expected_rows = every_step(2)
    step = list(expected).index("epoch_0001") + 1  # the second epoch's first
    outcome, folder = run(2, [*flags, "--checkpoint_minutes=0"], restarts=1, SIGNAL_AT=f"{rank} {step} SIGKILL")
    assert outcome.returncode == 0, outcome.stderr
    assert "resumed after epoch" in outcome.stdout
    last = list_checkpoints(folder.checkpoints)[-1]
    state = dict(tensors_of(torch.load(last / STATE, weights_only=True)))
    assert_same_states(state, expected[last.name], 0.0)
    assert_same_rows(folder.read_metrics(), expected_rows, 1e-12)
    assert json.loads((last / "progress.json").read_text())["epoch"] == len(expected_rows)


@pytest.mark.slow
def test_a_run_from_a_checkpoint_of_another_is_started_again(every_step, flags, run):
    """Before its own first checkpoint: from the one that it began from, not from scratch, and not refused."""
    expected, expected_rows = every_step(2)
    first = list(expected).index("epoch_0001") + 1  # the second epoch's first step
    outcome, source = run(2, flags, SIGNAL_AT=f"0 {first} SIGTERM")
    assert outcome.returncode != 0
    path = list_checkpoints(source.checkpoints)[-1]
    assert path.name == f"epoch_0001_step_{first:08d}"
    outcome, folder = run(2, [*flags, f"--resume={path}"], restarts=1, SIGNAL_AT=f"1 {first + 1} SIGKILL")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("resumed after epoch 1, step 1 of ") >= 2
    last = list_checkpoints(folder.checkpoints)[-1]
    state = dict(tensors_of(torch.load(last / STATE, weights_only=True)))
    assert_same_states(state, expected[last.name], 0.0)
    assert_same_rows(folder.read_metrics(), expected_rows[1:], 1e-12)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_while_it_starts(run, small, tmp_path, processes):
    """Each process leaves at once, nothing is half there, and the same command starts again."""
    flags, waiting = [*small, "--epochs=1"], tmp_path / "waiting"
    waiting.mkdir()
    outcome, folder = run(processes, flags, tmp_path / "run", WAIT_IN=str(waiting))
    assert outcome.returncode == (75 if processes == 1 else 1), outcome.stderr
    assert "dcal: error: SIGTERM: left before the first step" in outcome.stderr
    assert not folder.path.exists()
    outcome, _ = run(processes, flags, folder.path)
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.slow
def test_survivors_say_that_another_has_died(run, small):
    outcome, folder = run(2, small, SIGNAL_AT="1 4 SIGKILL")
    assert outcome.returncode != 0
    assert "dcal: error: another process" in outcome.stderr
    assert "trainer.py" not in outcome.stderr  # as in a traceback
    assert [path.name for path in list_checkpoints(folder.checkpoints)] == ["epoch_0001"]


@pytest.mark.slow
def test_a_signal_in_the_evaluation_ends_all(run, small):
    """None waits in the evaluation for one who has left it."""
    outcome, folder = run(2, [*small, "--eval_batch_size=4"], SIGNAL_IN_EVAL="1")
    assert outcome.returncode != 0
    assert "SIGTERM: left at epoch 1 of 2" in outcome.stderr or "a signal to another process" in outcome.stderr
    assert [path.name for path in list_checkpoints(folder.checkpoints)] == ["epoch_0000_step_00000003"]
    outcome, _ = run(2, [*small, "--eval_batch_size=4"], folder.path)
    assert outcome.returncode == 0, outcome.stderr
    assert [row["epoch"] for row in folder.read_metrics()] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_divergence_of_one_process_ends_all(run, small, rank):
    """All see the gradient that they share; the first writes down what repeats it, with the images of both."""
    outcome, folder = run(2, [*small, "--epochs=3"], POISON_AT=f"{rank} 4")
    assert outcome.returncode != 0
    assert "training diverged at step 4" in outcome.stderr
    report = json.loads((folder.diverged / "report.json").read_text())
    assert (report["epoch"], report["step"], report["micro_batches"]) == (2, 4, [0, 1])
    assert [len(images) for images in report["pictures"]] == [8, 8]
    before = list_checkpoints(folder.checkpoints)[-1]
    kept, last = (dict(tensors_of(torch.load(path / STATE, weights_only=True))) for path in (folder.diverged, before))
    for state in (kept, last):
        del state["/optimizer/param_groups"]  # the schedule gives the learning rates anew
    assert_same_states(kept, last, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_divergence_under_loss_scaling_ends_all(run, small, rank):
    """There, the gradient's norm tells nothing, and only one process sees the loss."""
    outcome, folder = run(2, [*small, "--epochs=3"], POISON_AT=f"{rank} 4", LOSS_SCALING="1")
    assert outcome.returncode != 0
    assert outcome.stderr.count("training diverged at step 4") == 2
    assert verify(folder.diverged) is None
    assert json.loads((folder.diverged / "report.json").read_text())["step"] == 4
    kept, before = (
        torch.load(path / STATE, weights_only=True)
        for path in (folder.diverged, list_checkpoints(folder.checkpoints)[-1])
    )
    assert kept["scaler"]["scale"] == before["scaler"]["scale"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_evaluation_that_is_not_finite_in_one_process_ends_all(run, small, rank):
    outcome, _ = run(2, [*small, "--epochs=1", "--eval_batch_size=4"], POISON_IN_EVAL=f"{rank}")
    assert outcome.returncode != 0
    assert outcome.stderr.count("evaluation: the model's logits are NaN or infinite, after step") == 2


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [2, 1])
def test_unreadable_images_of_all_processes(run, small, make_images, tmp_path, allowed):
    """Told by the first process, written down, and counted together against the limit."""
    images = make_images(tmp_path / "pictures")
    shown = sorted((images / "val").rglob("*.png"))
    broken = [shown[0], shown[4]]  # the first batch of either process
    for path in broken:
        path.write_bytes(b"no image")
    flags = [*small, f"--data_root={images}", "--epochs=1", "--eval_batch_size=4", f"--max_bad_images={allowed}"]
    outcome, folder = run(2, flags)
    assert all(f"{path}" in outcome.stdout for path in broken)
    if allowed == 1:
        assert outcome.returncode != 0
        assert_says(outcome.stderr, "2 images could not be read", "--max_bad_images allows 1")
    else:
        assert outcome.returncode == 0, outcome.stderr
        (last,) = list_checkpoints(folder.checkpoints)
        assert json.loads((last / "progress.json").read_text())["unreadable"].keys() == {f"{path}" for path in broken}
        assert "2 images could not be read" in outcome.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "status", "written"),
    [({"SIGNAL_AT": "1 2 SIGTERM"}, 75, "epoch_0000_step_00000002"), ({"POISON_AT": "1 2"}, 3, "diverged")],
    ids=["a signal", "a divergence"],
)
def test_ranks_end_after_rank_0_has_written(run, small, what, status, written):
    """A launcher kills the others half a minute after the first has left."""
    outcome, _ = run(2, small, SLOW_WRITING="2", **what)
    for rank in (0, 1):
        assert f"process {rank} ends with {status}: ['{written}']" in outcome.stdout


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(run, small, tmp_path):
    """Errors that only rank 0 can detect end the other ranks, too."""
    outcome, folder = run(2, [*small, "--epochs=1"])
    assert outcome.returncode == 0, outcome.stderr
    outcome, _ = run(2, [*small, "--epochs=2", "--lr=0.5"], folder.path)
    assert outcome.returncode != 0
    assert "other settings" in outcome.stderr
    assert 'Traceback (most recent call last):\n  File "' + str(ROOT) not in outcome.stderr
