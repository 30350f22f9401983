"""Processes of a restart meet each other, and not those of the attempt before."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore, TCPStore

from dual_cross_attention.data.loaders import PATIENCE, READING_ATTEMPTS
from dual_cross_attention.training.distributed.rendezvous import (
    COLLECTIVE_TIMEOUT,
    agree_on_prefix,
    process_group_options,
)


def attempt(store, processes):
    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(lambda rank: agree_on_prefix(store, rank, processes), range(processes)))


@pytest.mark.parametrize("processes", [2, 5])
def test_every_attempt_agrees_on_a_name_of_its_own(processes):
    store = HashStore()
    names = [attempt(store, processes) for _ in range(4)]
    assert all(len(set(of_attempt)) == 1 for of_attempt in names)
    assert len({of_attempt[0] for of_attempt in names}) == 4


def test_requests_of_dead_ranks_are_ignored():
    """A process that had asked and was killed, and one that had been answered and had not read it."""
    store = HashStore()
    store.set("dcal/asks/1", "dead")
    store.set("dcal/asks/2", "also dead")
    store.set("dcal/answer/also dead", "an old name")
    first, *others = attempt(store, 3)
    assert others == [first, first] != ["an old name"] * 2


@pytest.mark.parametrize(
    "environment",
    [{}, {"TORCHELASTIC_MAX_RESTARTS": "0"}, {"TORCHELASTIC_MAX_RESTARTS": "3", "WORLD_SIZE": "1", "RANK": "0"}],
    ids=["no launcher", "no restarts", "one process"],
)
def test_where_nothing_is_restarted_pytorch_does_as_always(monkeypatch, environment):
    for name in ("TORCHELASTIC_MAX_RESTARTS", "WORLD_SIZE", "RANK", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert process_group_options() == {"timeout": COLLECTIVE_TIMEOUT}
    assert COLLECTIVE_TIMEOUT.total_seconds() > READING_ATTEMPTS * PATIENCE  # who waits for images is waited for


def test_the_launchers_store_is_used_under_the_agreed_name(monkeypatch):
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    of_launcher = {
        "TORCHELASTIC_MAX_RESTARTS": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{server.port}",
        "WORLD_SIZE": "2",
        "RANK": "0",
    }
    for name, value in of_launcher.items():
        monkeypatch.setenv(name, value)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(agree_on_prefix, TCPStore("127.0.0.1", server.port, is_master=False), 1, 2)
        point = process_group_options()
    assert (point["rank"], point["world_size"]) == (0, 2)
    point["store"].set("key", "value")
    assert server.get(f"{other.result()}/key") == b"value"


@pytest.mark.parametrize(("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepS")])
def test_accelerates_own_plans_are_refused(dcal, small, tmp_path, monkeypatch, variable, name):
    monkeypatch.setenv(variable, "true")
    outcome = dcal("train", *small, "--output_dir", tmp_path / "run")
    assert outcome.status == 2
    assert "accelerate" in outcome.err and name in outcome.err
    assert not (tmp_path / "run").exists()
