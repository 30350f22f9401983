"""What a trainer builds from the settings: accelerator, sharding, optimizer and compilation."""

from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from dual_cross_attention.devices import choose_compile, choose_device, choose_precision
from dual_cross_attention.errors import InputError
from dual_cross_attention.tasks.task import Task
from dual_cross_attention.training.distributed.fsdp import shard
from dual_cross_attention.training.distributed.strategy import DistributedStrategy, ddp_options
from dual_cross_attention.training.optimizers import build_optimizer
from dual_cross_attention.training.run_context import RunContext


def build_accelerator(run: RunContext, task: Task) -> Accelerator:
    """Device, precision and ranks; trackers are not Accelerate's, see `trackers.py`."""
    config = run.config
    device = choose_device(config.device)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=choose_precision(config.precision, device, config.format_version),
        kwargs_handlers=[ddp_options(task.leaves_out_parameters)],
        # Otherwise environment variables of Accelerate would compile the whole task, and divide the losses.
        dynamo_backend="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


def shard_if_configured(run: RunContext, task: Task, accelerator: Accelerator) -> None:
    """Shards the task over the ranks where `--parallel` is fsdp and there are several.

    Raises:
        InputError: in fp16, whose loss scaling FSDP does not support here; or with an average of the weights or LoRA.
    """
    config = run.config
    if config.parallel != "fsdp" or accelerator.num_processes == 1:
        return
    if accelerator.mixed_precision == "fp16":
        raise InputError("--parallel fsdp takes --precision bf16 or fp32, not fp16, which scales its losses")
    if config.ema is not None:
        raise InputError(
            "--parallel fsdp does not average weights that are sharded: take --parallel ddp, or --ema null"
        )
    if config.lora_rank:
        raise InputError("--parallel fsdp does not shard LoRA's weights: take --parallel ddp, or --lora_rank 0")
    if accelerator.mixed_precision == "bf16" and not config.use_gradient_checkpointing:
        run.warn(
            "in bf16, each process keeps a cast copy of all blocks' weights until the backward pass, which "
            "--use_gradient_checkpointing true spares it"
        )
    shard(task, accelerator.device, accelerator.num_processes)


def build_strategy(run: RunContext, task: Task, accelerator: Accelerator, peak_lr: float) -> DistributedStrategy:
    """The task on the device, with its optimizer."""
    config = run.config
    optimizer = build_optimizer(
        task,
        peak_lr,
        config.weight_decay,
        config.optimizer,
        config.bias_lr_factor,
        config.w_lr_factor,
        config.layer_decay,
    )
    return DistributedStrategy(accelerator, task, optimizer, config.ema)


def compile_if_worthwhile(run: RunContext, strategy: DistributedStrategy, micro_batches: int) -> None:
    """Compiles the blocks as `--compile` says.

    Args:
        micro_batches: of the whole training on this rank, which decide where `--compile` is auto.
    """
    is_compiled, why_not = choose_compile(
        run.config.compile, choose_device(run.config.device), micro_batches, strategy.sharded
    )
    if is_compiled:
        strategy.task.model.compile_blocks()
        if strategy.average:
            strategy.average.compile_blocks()
    elif why_not:
        run.warn(why_not)
