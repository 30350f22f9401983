"""AdamW and the cosine schedule, from timm, with the right parameters left out of weight decay."""

from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch.optim import AdamW, Optimizer

from dual_cross_attention.tasks.task import Task


def peak_learning_rate(lr: float | None, lr_per_512: float, effective_batch: int) -> float:
    """`lr` if it is set, else the paper's rule: lr_per_512 · effective batch / 512."""
    return lr if lr is not None else lr_per_512 * effective_batch / 512


def build_optimizer(task: Task, lr: float, weight_decay: float) -> Optimizer:
    """AdamW; biases, norms, embeddings and loss weights have no weight decay."""
    exempt = [f"model.{name}" for name in task.model.no_weight_decay()]
    groups = param_groups_weight_decay(task, weight_decay, no_weight_decay_list=exempt)
    return AdamW(groups, lr=lr, weight_decay=weight_decay)


def build_schedule(
    optimizer: Optimizer, updates_per_epoch: int, epochs: int, warmup_epochs: float, min_lr: float
) -> CosineLRScheduler:
    """Linear warm-up from 1 % of the peak, then cosine to `min_lr`; call `step_update(n)` after the n-th update."""
    peak = max(group["lr"] for group in optimizer.param_groups)
    warmup = round(warmup_epochs * updates_per_epoch)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, epochs * updates_per_epoch - warmup),  # at 1 or less, timm warns that there is no cosine
        lr_min=min_lr,
        warmup_t=warmup,
        warmup_lr_init=0.01 * peak,
        warmup_prefix=True,
        t_in_epochs=False,
    )
