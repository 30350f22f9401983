"""The settings that every task has. A task's own config (`fgvc_config.py`) adds its own and gives its recipe."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

from dual_cross_attention.configs.versions import FORMAT_VERSION, check_version, setting
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import short_repr

LARGEST = 2**53  # of a number without a limit of its own: a float holds every whole number up to it
MAX_SIDE = 4096  # 65,536 patches of 16 x 16: beyond, position embeddings alone fill the memory

Config = TypeVar("Config", bound="TrainingConfig")


@dataclass(kw_only=True)
class TrainingConfig:
    """Settings of any task. Those without a value here are decided by the task's recipe.

    Raises:
        InputError: a value that cannot work, such as a negative number of epochs.
    """

    # Smallest and largest value of a number; None: no limit.
    RANGES: ClassVar[dict[str, tuple[float, float | None]]] = {
        "drop_path_rate": (0, 0.99),
        "glca_blocks": (1, 100),
        "pwca_blocks": (1, None),
        "distractor_tokens": (0, 1),
        "pwca_every": (1, None),
        "pwca_start": (0, 1),
        "pwca_warmup": (0, 1),
        "glca_start": (0, 1),
        "flip": (0, 1),
        "epochs": (1, None),
        "batch_size": (1, None),
        "gradient_accumulation_steps": (1, None),
        "lr": (0, None),
        "lr_per_512": (0, None),
        "min_lr": (0, None),
        "warmup_epochs": (0, None),
        "weight_decay": (0, None),
        "bias_lr_factor": (0, None),
        "w_lr_factor": (0, None),
        "clip_grad": (1e-12, None),
        "weight_bound": (1e-12, None),
        "num_workers": (0, None),
        "eval_batch_size": (1, None),
        "eval_every": (1, None),
        "checkpoint_minutes": (0, None),
        "max_bad_images": (0, None),
        "seed": (0, 2**31),
    }

    # Names of those in `given` that are flags of the command line, which stand over what --config files say.
    flags: ClassVar[frozenset[str]] = frozenset()

    # What the command line and --config files said, by name, where these settings were read from them; a run that was
    # made under other defaults is recognized by it, see `as_of`.
    given: ClassVar[Mapping[str, Any] | None] = None

    format_version: int = FORMAT_VERSION
    """What the settings mean, see `versions.py`; written into files, not to be set."""

    # --- what is trained on what ---
    task: str
    """Which task: fgvc is fine-grained visual categorization, reid is object re-identification."""
    dataset: str
    """Name of the dataset."""
    data_root: str | None = None
    """The dataset's own folder, or the folder that holds it; of shards, a pattern of its training archives will do;
    unset: looked for in $DCAL_DATA and ./data by the official name of its folder."""
    download: bool = False
    """Fetch the dataset into data_root, where its source still offers that (aircraft)."""

    # --- the model ---
    backbone: str
    """timm's name of a plain ViT, such as deit_small_patch16_224 or vit_base_patch16_224.augreg_in21k."""
    backbone_kwargs: dict[str, int | float | bool | str] = field(default_factory=dict)
    """More arguments of timm.create_model, such as '{"depth": 6}'."""
    weights: str = "imagenet"
    """Start from: imagenet (timm's published weights), none (from scratch), a file (.safetensors, .pth, .npz, …), or a
    run's folder (its best model: backbone and GLCA are taken, heads are initialized)."""
    weights_key: str | None = setting(None, before={1: None})
    """Of a weights file: the nested dict or prefix of names to take, such as teacher; unset: the one that fits."""
    weights_img_size: int | list[int] | None = setting(None, before={1: None})
    """Of a weights file: the image size that it was trained at, a side or height and width, from which the grid of its
    position embedding follows; unset: what the file says, else a square."""
    ablation: Literal["full", "sa_only", "sa_glca", "sa_pwca"] = "full"
    """Branches: full is SA + GLCA + PWCA; sa_only is the plain backbone, the baseline."""
    local_ratio: float
    """R: share of the patch tokens that are GLCA's local queries."""
    glca_init: Literal["random", "last_block"] = "random"
    """GLCA's block starts at random, or as a copy of the backbone's last block; M of them: of its last M blocks."""
    local_queries: Literal["rollout", "random", "penultimate", "local_only", "cross"] = setting(
        "rollout", before={1: "rollout"}
    )
    """GLCA's local tokens are the R patch tokens with the largest attention rollout; random: any; penultimate: those
    that the class token attends to most in the second to last block. They attend to all tokens; local_only: rollout's,
    and they attend to themselves and the class token only; cross: the class token alone attends, to rollout's tokens
    only. With glca_blocks 1, rollout, random and penultimate predict the same: its class token attends to all."""
    glca_blocks: int = setting(1, before={1: 1})
    """M: blocks of GLCA in a row, each with its own weights; tokens that are not local pass them unchanged."""
    distractor_stream: Literal["pwca", "sa"] = "pwca"
    """PWCA's distractor lends the keys and values of its PWCA stream, or of its SA stream."""
    pwca_blocks: int | None = setting(None, before={1: None})
    """T: PWCA is in the last T blocks of the backbone. Below, its tokens are those of SA and are computed once; unset:
    all blocks."""
    distractor_tokens: float = setting(1.0, before={1: 1.0})
    """Share of the distractor's patch tokens, from 0 to 1, that are keys and values of PWCA, sampled at random in every
    step; its class token always is."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""

    # --- when the branches are trained ---
    pwca_start: float = setting(0.0, before={1: 0.0})
    """Share of the training, from 0 to 1, after which PWCA is trained. Before, it is not computed, and the loss has no
    term of it."""
    pwca_warmup: float = setting(0.0, before={1: 0.0})
    """Share of the training, from PWCA's start on, over which its term of the loss grows linearly from 0 to 1."""
    pwca_every: int = setting(1, before={1: 1})
    """K: from PWCA's start on, only every K-th step of the optimizer computes it."""
    glca_start: float = setting(0.0, before={1: 0.0})
    """Share of the training, from 0 to 1, after which GLCA is trained, from the weights it had at the beginning (see
    glca_init). Before, it is not computed in training, and predictions are those of SA alone."""

    # --- images ---
    img_size: int | list[int]
    """Input size in pixels: a side, or height and width (--img_size 256 128); multiples of the patch size."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    mean: float | list[float] | Literal["auto"] | None = setting("auto", before={1: None})
    """Mean of the pixels (0 to 1) of each channel, one number or three: images are normalized by it. auto: what the
    weights file says, else (re-ID) pixel_stats, else the backbone's; null: without looking at the weights file."""
    std: float | list[float] | Literal["auto"] | None = setting("auto", before={1: None})
    """Standard deviation of the pixels, like mean, and given with it."""

    # --- optimization ---
    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images of one forward pass on one device (the micro-batch); at least 2 with PWCA."""
    gradient_accumulation_steps: int = 1
    """Forward passes for one step of the optimizer; the effective batch is batch_size x this x processes."""
    lr: float | None = None
    """Peak learning rate; unset: lr_per_512 x effective batch / 512."""
    lr_per_512: float
    """Learning rate at an effective batch of 512."""
    min_lr: float = 0.0
    """Where the cosine schedule ends."""
    warmup_epochs: float = 0.0
    """Linear warm-up before the cosine; a longer one than the training ends with it."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum 0.9."""
    bias_lr_factor: float = 1.0
    """Biases learn so many times as fast."""
    w_lr_factor: float = 1.0
    """Loss weights w learn so many times as fast."""
    weight_decay: float
    """Weight decay; AdamW leaves vectors and embeddings out of it, both leave out the loss weights."""
    clip_grad: float | None = 1.0
    """Largest norm of the gradient; null: no clipping."""
    loss_weights: Literal["learned", "fixed", "sum", "mean"] = setting("learned", before={1: "learned"})
    """How the losses L of the branches become one: learned is half the sum of e^-w L + w, with a learnable w for each;
    fixed is the same with all w at 0, so half the sum of L; sum is their sum; mean is their mean. A branch that is not
    trained in a step is left out."""
    weight_bound: float = 2.0
    """Loss weights w stay within plus and minus this."""

    # --- the machine ---
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the device multiplies it in hardware, fp16 with loss scaling on older CUDA, else fp32; decided
    when a run starts, and kept by it."""
    use_gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the blocks with torch.compile, a minute at the start; auto: on CUDA, in runs of 1,000 steps or more."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA, else MPS, else CPU."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Of several processes (torchrun, accelerate launch), each has the whole model (ddp), or a part of its weights and
    of the optimizer's state (fsdp), for backbones that do not fit one card: slower, and the same results."""
    num_workers: int | None = None
    """Processes that read images; unset: none on a CPU, else one per core, at most 8."""
    cache: Literal["none", "ram"] = "none"
    """ram: images of both splits stay in memory, decoded and resized, once they were read; what is trained is the
    same to the bit. Takes 3 x height x width bytes an image, of resize_size (re-ID: img_size), 0.9 MB at 550 x 550;
    each process of a multi-GPU run has a cache of its own."""
    max_bad_images: int | None = None
    """Go on with at most so many images that cannot be read (in training the next one takes the place of each);
    unset: 1 % of the training images, at least 10. `dcal check-data` finds them before a run."""
    eval_batch_size: int | None = None
    """Images of one forward pass in evaluation; unset: four times batch_size."""
    eval_every: int = 1
    """Evaluate every so many epochs, and after the last."""
    seed: int = 0
    """Of weights, data order, augmentation, distractors and drop path."""

    # --- the run ---
    checkpoint_minutes: float = 15.0
    """Save the state every so many minutes, beside every epoch; 0: after every step."""
    output_dir: str | None = None
    """Folder of the run; unset: runs/TASK-DATASET-BACKBONE-ABLATION-seedSEED."""
    resume: str = "auto"
    """auto: resume if the folder holds this run; never: refuse a folder that holds one; or PATH of another run or its
    checkpoint, from which a run in output_dir begins; with the same PATH again, that one resumes."""

    def replaced(self: Config, **values: Any) -> Config:
        """A copy with these values, which count as given; errors as of the settings themselves."""
        copy = replace(self, **values)
        if self.given is not None:
            copy.given = {**self.given, **values}
            copy.flags = self.flags
        return copy

    def __post_init__(self):
        check_version(self.format_version, "settings")
        for name, (low, high) in self.RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= (LARGEST if high is None else high):  # NaN is not either
                wanted = f"from {low} to {high}" if high is not None else f"of at least {low}"
                if high is None and value > LARGEST and value != math.inf:
                    wanted = f"from {low} to {LARGEST:,}"
                raise InputError(f"{name}: expected a number {wanted}, got {short_repr(value)}")
        self.img_size = sides("img_size", self.img_size)
        if self.weights_img_size is not None:
            self.weights_img_size = sides("weights_img_size", self.weights_img_size)
        for name in ("weights_key", "weights_img_size"):
            if self.weights in ("imagenet", "none") and getattr(self, name) is not None:
                raise InputError(
                    f"{name} is of a weights file, and weights is {self.weights}: give a file, or --{name} null"
                )
        self._check_pixel_stats()
        if self.pwca_start + self.pwca_warmup > 1 + 1e-9:
            raise InputError(
                f"pwca_warmup: expected at most what is left of the training after pwca_start {self.pwca_start}, got "
                f"{self.pwca_warmup}"
            )
        if self.ablation in ("full", "sa_pwca") and self.batch_size < 2:
            raise InputError(
                f"batch_size {self.batch_size}: PWCA takes its distractor from the same batch, so it needs at least 2; "
                "or train with --ablation sa_glca or sa_only"
            )

    def _check_pixel_stats(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is None or value == "auto":
                continue
            values = [float(each) for each in value] if isinstance(value, list) else [float(value)] * 3
            if len(values) != 3 or not all(0 <= each <= 1 for each in values):
                raise InputError(
                    f"{name}: expected one or three numbers from 0 to 1, of pixels from 0 to 1, got {short_repr(value)}"
                )
            setattr(self, name, values)
        if isinstance(self.std, list) and min(self.std) <= 0:
            raise InputError(f"std: expected numbers above 0, got {short_repr(self.std)}")
        if isinstance(self.mean, list) != isinstance(self.std, list):
            name, other = ("mean", "std") if isinstance(self.mean, list) else ("std", "mean")
            raise InputError(
                f"mean and std are given together: got {name} {short_repr(getattr(self, name))} and {other} "
                f"{short_repr(getattr(self, other))}: give numbers for both, or --mean auto --std auto"
            )


def sides(name: str, size: int | list[int]) -> list[int]:
    """A side, or height and width → [height, width], in pixels.

    Raises:
        InputError: not one or two positive numbers; `name` is the setting that the message names.
    """
    both = [size, size] if isinstance(size, int) else list(size)
    if len(both) == 1:
        both *= 2
    if len(both) != 2 or min(both) < 1:
        raise InputError(f"{name}: expected a side, or height and width, in pixels; got {short_repr(size)}")
    if max(both) > MAX_SIDE:
        raise InputError(f"{name}: expected sides of at most {MAX_SIDE:,} pixels, got {short_repr(size)}")
    return both
