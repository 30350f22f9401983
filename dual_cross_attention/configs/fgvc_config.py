"""Settings of fine-grained recognition. Edit the defaults here, set them in a --config file, or give them as flags:
the later one wins. The defaults are the paper's recipe (arXiv 2205.02151, section 4.1)."""

from dataclasses import dataclass, field
from typing import Literal

from dual_cross_attention.errors import InputError

# The paper resizes to 550 x 550 and crops 448 x 448; other input sizes keep that proportion.
RESIZE_OVER_CROP = 550 / 448


@dataclass
class FGVCConfig:
    """Fine-grained visual categorisation (FGVC)."""

    # --- what is trained on what ---
    task: Literal["fgvc"] = "fgvc"
    """Which task."""
    dataset: str = "cub"
    """Data set: toy (drawn by this program), cub, cars, aircraft, or folder (train/CLASS/*.jpg, val/CLASS/*.jpg)."""
    data_root: str | None = None
    """The data set's own folder, or the folder that holds it."""
    download: bool = False
    """Fetch the data set into data_root, where its source still offers that (aircraft)."""

    # --- the model ---
    backbone: str = "deit_tiny_patch16_224"
    """timm's name of a plain ViT, such as deit_small_patch16_224 or vit_base_patch16_224.augreg_in21k."""
    backbone_kwargs: dict[str, int | float | bool | str] = field(default_factory=dict)
    """More arguments of timm.create_model, such as '{"depth": 6}'."""
    weights: str = "imagenet"
    """Start from: imagenet (timm's published weights), none (from scratch), or a file (.safetensors, .pth, .npz)."""
    ablation: Literal["full", "sa_only", "sa_glca", "sa_pwca"] = "full"
    """Branches: full is SA + GLCA + PWCA; sa_only is the plain backbone, the baseline."""
    local_ratio: float = 0.1
    """R: share of the patch tokens that are GLCA's local queries."""
    glca_init: Literal["random", "last_block"] = "random"
    """GLCA's block starts at random, or as a copy of the backbone's last block."""
    distractor_stream: Literal["pwca", "sa"] = "pwca"
    """PWCA's distractor lends the keys and values of its PWCA stream, or of its SA stream."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""

    # --- pictures ---
    img_size: int | list[int] = 448
    """Input size in pixels: a side, or height and width; multiples of the patch size."""
    resize_size: int | list[int] | None = None
    """Pictures are resized to this, then cropped to img_size; unset: img_size x 550/448, as in the paper."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""

    # --- optimisation ---
    epochs: int = 100
    """Passes over the training pictures."""
    batch_size: int = 16
    """Pictures of one forward pass on one device (the micro-batch); at least 2 with PWCA."""
    gradient_accumulation_steps: int = 1
    """Forward passes for one step of the optimiser; the effective batch is batch_size x this x processes."""
    lr: float | None = None
    """Peak learning rate; unset: lr_per_512 x effective batch / 512."""
    lr_per_512: float = 5e-4
    """Learning rate at an effective batch of 512; the paper's 5e-4 gives 1.56e-5 at batch 16."""
    min_lr: float = 0.0
    """Where the cosine schedule ends."""
    warmup_epochs: float = 0.0
    """Linear warm-up before the cosine."""
    weight_decay: float = 0.05
    """AdamW's decoupled weight decay; vectors, embeddings and loss weights are left out of it."""
    clip_grad: float | None = 1.0
    """Largest norm of the gradient; null: no clipping."""
    label_smoothing: float = 0.0
    """Of the cross-entropy."""
    weight_bound: float = 2.0
    """Loss weights w stay within plus and minus this."""

    # --- the machine ---
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the device has it, fp16 with loss scaling on older CUDA, fp32 on CPU and MPS."""
    use_gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA, else MPS, else CPU."""
    num_workers: int | None = None
    """Processes that read pictures; unset: one per core, at most 8."""
    eval_batch_size: int | None = None
    """Pictures of one forward pass in evaluation; unset: four times batch_size."""
    eval_every: int = 1
    """Evaluate every so many epochs, and after the last."""
    seed: int = 0
    """Of weights, data order, augmentation, distractors and drop path."""

    # --- the run ---
    output_dir: str | None = None
    """Folder of the run; unset: runs/DATASET-BACKBONE-ABLATION-seedSEED."""
    resume: str = "auto"
    """auto: go on if the folder holds this very run; never: refuse a folder that holds a run; or a checkpoint's PATH."""

    def __post_init__(self):
        for name in ("img_size", "resize_size"):
            size = getattr(self, name)
            if size is not None:
                sides = [size, size] if isinstance(size, int) else list(size)
                sides = sides * 2 if len(sides) == 1 else sides
                if len(sides) != 2 or min(sides) < 1:
                    raise InputError(f"{name}: expected a side, or height and width, in pixels; got {size}")
                setattr(self, name, sides)
        if self.resize_size is None:
            self.resize_size = [round(side * RESIZE_OVER_CROP) for side in self.img_size]
        for name, low, high in (
            ("epochs", 1, None), ("batch_size", 1, None), ("gradient_accumulation_steps", 1, None), ("eval_every", 1, None),
            ("eval_batch_size", 1, None), ("num_workers", 0, None), ("seed", 0, 2**31), ("lr", 0, None), ("min_lr", 0, None),
            ("lr_per_512", 0, None), ("warmup_epochs", 0, None), ("weight_decay", 0, None), ("flip", 0, 1),
            ("label_smoothing", 0, 1), ("drop_path_rate", 0, 0.99), ("clip_grad", 1e-12, None), ("weight_bound", 1e-12, None),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (low <= value and (high is None or value <= high)):
                wanted = f"from {low} to {high}" if high is not None else f"at least {low}"
                raise InputError(f"{name}: expected a number {wanted}, got {value}")
        if self.ablation in ("full", "sa_pwca") and self.batch_size < 2:
            raise InputError(
                f"batch_size {self.batch_size}: PWCA takes its distractor from the same batch, so it needs at least 2; "
                "or train with --ablation sa_glca or sa_only"
            )


@dataclass
class ToyConfig(FGVCConfig):
    """The built-in toy task: drawn pictures, a small ViT from scratch, minutes on a CPU."""

    dataset: str = "toy"
    backbone: str = "vit_tiny_patch16_224"
    backbone_kwargs: dict[str, int | float | bool | str] = field(
        default_factory=lambda: {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
    )
    weights: str = "none"
    img_size: int | list[int] = 64
    resize_size: int | list[int] | None = 70
    epochs: int = 20
    batch_size: int = 64
    lr: float | None = 1e-3
    warmup_epochs: float = 1.0


# The settings that each data set starts from.
FGVC_CONFIGS: dict[str, type[FGVCConfig]] = {
    "toy": ToyConfig,
    "cub": FGVCConfig,
    "cars": FGVCConfig,
    "aircraft": FGVCConfig,
    "folder": FGVCConfig,
}
