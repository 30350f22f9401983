"""Which device and which precision a run uses, and what memory it took."""

import ctypes
import sys

import torch

from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.errors import InputError


def choose_device(device: str) -> torch.device:
    """`auto`: CUDA, else MPS, else CPU.

    Raises:
        InputError: a device that this machine does not have.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, available in has.items() if available)
    if not has.get(device):
        there = ", ".join(name for name, available in has.items() if available)
        raise InputError(f"no device '{device}' on this machine (PyTorch {torch.__version__}): there is auto, {there}")
    return torch.device(device)


def choose_precision(precision: str, device: torch.device, format_version: int = FORMAT_VERSION) -> str:
    """Accelerate's name of the mixed precision: "no" (fp32), "bf16" or "fp16".

    "auto" takes bf16 where CUDA or the CPU has it in hardware, fp16 with loss scaling on older CUDA, fp32 elsewhere.

    Args:
        precision: the setting.
        device: where the model runs.
        format_version: of the settings; in format 1, "auto" was fp32 on every CPU.

    Raises:
        InputError: an unknown precision, or fp16 without CUDA, which has no loss scaling there.
    """
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise InputError(f"unknown precision '{precision}': there are auto, fp32, bf16, fp16")
    if precision == "auto":
        if device.type == "cpu" and format_version > 1 and cpu_multiplies_bf16():
            return "bf16"
        if device.type != "cuda":
            return "no"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "fp16" and device.type != "cuda":
        raise InputError(f"precision fp16 needs CUDA, and the device is {device.type}: take auto, bf16 or fp32")
    return {"fp32": "no"}.get(precision, precision)


def resolve_precision(precision: str, device: torch.device, format_version: int) -> str:
    """The setting that "auto" stands for on a device, to be kept by a run; any other stays.

    Settings of format 1 keep "auto", which their runs and models have always decided anew.
    """
    if precision != "auto" or format_version == 1:
        return precision
    return precision_setting(choose_precision(precision, device, format_version))


def precision_setting(mixed_precision: str) -> str:
    """Accelerate's name of the mixed precision, as of `choose_precision`, as a setting: "fp32", "bf16" or "fp16"."""
    return "fp32" if mixed_precision == "no" else mixed_precision


def available_precision(precision: str, device: torch.device) -> str:
    """The precision of a run that was trained elsewhere: itself, or "auto" where this device does not multiply it."""
    is_lacking = {
        "fp16": device.type != "cuda",
        "bf16": choose_precision("auto", device) != "bf16",
    }
    return "auto" if is_lacking.get(precision, False) else precision


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16: AVX512-BF16, AMX, or those of Arm.

    With them a step takes less time than in fp32, the more so the larger the model (docs/results.md). Without them,
    bf16 is emulated and slower.
    """
    if hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    # Earlier versions of PyTorch tell of x86 only.
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in known)


WORTH_COMPILING = 1_000
"""Steps of a run that pay for the minute or so in which `torch.compile` writes kernels."""


def choose_compile(setting: bool | str, device: torch.device, steps: int, sharded: bool = False) -> tuple[bool, str]:
    """Whether to compile the model's blocks, and why not, where that is worth saying.

    "auto" compiles on CUDA, in a run of at least `WORTH_COMPILING` steps, if a first small function can be compiled:
    that takes Triton and a C compiler.

    Args:
        setting: True, False or "auto".
        device: where the run is.
        steps: forward passes of the run.
        sharded: FSDP swaps a block's parameters in and out, which is not compiled.

    Raises:
        InputError: True, and sharded.
    """
    if sharded:
        if setting is True:
            raise InputError("--compile true does not go with --parallel fsdp: take --compile auto, or --parallel ddp")
        return False, ""
    if setting != "auto":
        return bool(setting), ""
    if device.type != "cuda" or steps < WORTH_COMPILING:
        return False, ""
    try:
        torch.compile(lambda x: x * 2 + 1, fullgraph=True)(torch.ones(8, device=device))
    except Exception as error:  # whatever a half-installed toolchain raises: the run can continue without
        return False, f"torch.compile does not work here, so the run goes without: {' '.join(str(error).split())[:200]}"
    return True, ""


# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """From now on this process keeps the memory that it frees, for the next step to use; without glibc, nothing.

    glibc gives large blocks back at once, and a step then asks for each page anew: a step of DeiT-Tiny at 448 on two
    CPU cores took 1.1 times as long, and a worker eight times as long to put an image into its batch. The
    peak is the same; what is lost is that memory is free for others between steps.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far in MiB: allocated on the GPU, or the resident set of this process on CPU (MPS: now)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    import resource  # not on Windows, where models are loaded but not trained

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision of inference, as a context: "bf16" or "fp16"; any other precision computes in float32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
