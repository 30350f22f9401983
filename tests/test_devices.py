"""Which device and precision a run gets, on machines that this one is not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dual_cross_attention import InputError, devices
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.devices import (
    WORTH_COMPILING,
    available_precision,
    choose_compile,
    choose_device,
    choose_precision,
    cpu_multiplies_bf16,
    peak_memory_mb,
    resolve_precision,
)


@pytest.fixture
def machine(monkeypatch):
    """Pretends to be a machine with these devices."""

    def pretend(cuda=False, mps=False, bf16=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation
        )

    return pretend


def test_devices(machine):
    machine()
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    machine(cuda=True, mps=True)
    assert choose_device("auto").type == "cuda"
    assert choose_device("cpu").type == "cpu"
    machine(mps=True)
    assert choose_device("auto").type == "mps"
    with pytest.raises(InputError, match=r"'cuda'.*auto, mps, cpu"):
        choose_device("cuda")
    with pytest.raises(InputError, match="no device 'tpu'"):
        choose_device("tpu")


def test_precisions(machine, monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    machine(cuda=True, bf16=True)
    assert choose_precision("auto", cuda) == "bf16"
    machine(cuda=True)  # an older card, which could only emulate bf16
    assert choose_precision("auto", cuda) == "fp16"
    assert choose_precision("fp16", cuda) == "fp16"
    monkeypatch.setattr(devices, "cpu_multiplies_bf16", lambda: False)
    for device in (cpu, torch.device("mps")):
        assert choose_precision("auto", device) == "no"
        with pytest.raises(InputError, match="fp16 needs CUDA"):
            choose_precision("fp16", device)
    assert choose_precision("bf16", cpu) == "bf16"
    assert choose_precision("fp32", cuda) == "no"
    with pytest.raises(InputError, match="unknown precision 'fp8'"):
        choose_precision("fp8", cuda)


def test_precision_of_a_cpu_that_multiplies_bf16(monkeypatch):
    """Settings of format 1 stay in fp32 there."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(devices, "cpu_multiplies_bf16", lambda: True)
    assert choose_precision("auto", cpu) == "bf16"
    assert choose_precision("auto", cpu, format_version=1) == choose_precision("fp32", cpu) == "no"
    assert resolve_precision("auto", cpu, FORMAT_VERSION) == "bf16"
    assert resolve_precision("auto", cpu, 1) == "auto"
    assert resolve_precision("fp32", cpu, FORMAT_VERSION) == "fp32"
    assert available_precision("fp16", cpu) == "auto" and available_precision("bf16", cpu) == "bf16"
    monkeypatch.setattr(devices, "cpu_multiplies_bf16", lambda: False)  # a model of a GPU evaluated elsewhere
    assert available_precision("bf16", cpu) == available_precision("bf16", torch.device("mps")) == "auto"
    assert available_precision("fp32", cpu) == "fp32"


def test_a_newer_card_keeps_the_fp16_of_a_run(machine):
    cuda = torch.device("cuda")
    machine(cuda=True, bf16=True)
    assert available_precision("fp16", cuda) == "fp16" and available_precision("bf16", cuda) == "bf16"
    machine(cuda=True)
    assert available_precision("bf16", cuda) == "auto"


@pytest.mark.parametrize(
    ("has", "multiplies"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True}, True), ({}, False)],
)
def test_cpus(monkeypatch, has, multiplies):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert cpu_multiplies_bf16() is multiplies
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in earlier versions of PyTorch
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has.get("avx512_bf16", False))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has.get("amx_bf16", False))
    assert cpu_multiplies_bf16() is (multiplies and "bf16" not in has)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_what_the_kernel_says():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert peak_memory_mb(torch.device("cpu")) == pytest.approx(float(status["VmHWM"].split()[0]) / 1024, rel=0.05)


def test_compiling_is_chosen_for_long_runs_on_cuda_where_it_works(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_compile(True, cpu, 1) == (True, "")
    assert choose_compile(False, cuda, 10**6) == (False, "")
    assert choose_compile("auto", cpu, 10**6) == (False, "")
    assert choose_compile("auto", cuda, WORTH_COMPILING - 1) == (False, "")

    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(8))  # no CUDA here
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert choose_compile("auto", cuda, WORTH_COMPILING) == (True, "")

    def broken(function, **_):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", broken)
    compiled, why_not = choose_compile("auto", cuda, WORTH_COMPILING)
    assert not compiled and "C compiler" in why_not


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_memory_that_was_freed_is_there_without_new_pages():
    """256 MiB in blocks as training has them, again and again: soon no page has to be asked for."""
    code = """
import resource, torch
from dual_cross_attention.devices import keep_freed_memory
torch.set_num_threads(1)
keep_freed_memory()
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.empty(2**23).fill_(1.0) for _ in range(8)]
    del kept
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    first, *_, last = map(int, done.stdout.split())
    assert last < first / 10
