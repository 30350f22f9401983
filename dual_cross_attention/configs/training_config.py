"""Settings that all tasks share. The config of a task (`fgvc_config.py`) adds its own settings and the defaults."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

from dual_cross_attention.configs.finetuning_config import FineTuningConfig
from dual_cross_attention.configs.tracking_config import TrackingConfig
from dual_cross_attention.configs.versions import FORMAT_VERSION, check_version, setting
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import short_repr

LARGEST = 2**53  # default upper limit of numbers: floats represent all integers up to it exactly
MAX_SIDE = 4096  # 65,536 patches of 16 x 16: beyond, position embeddings alone fill the memory

Config = TypeVar("Config", bound="TrainingConfig")


@dataclass(kw_only=True)
class TrainingConfig(FineTuningConfig, TrackingConfig):
    """Settings of any task. Those without a default here get one in the config of the task.

    Raises:
        InputError: a value that cannot work, such as a negative number of epochs.
    """

    EXAMPLE: ClassVar[str] = """
        dcal train                                            # the toy dataset, minutes on a CPU
        dcal train --config cub_deit_tiny --data_root DIR     # a recipe of the paper
    """
    # Titles of the help, with the settings under each.
    GROUPS: ClassVar[dict[str, str]] = {
        "data": "task dataset data_root image_column label_column cameras bbox views val_fraction download "
        "max_bad_images",
        "images and augmentation": "img_size resize_size keep_aspect interpolation flip padding erasing color_jitter "
        "auto_augment mixup cutmix class_balance image_noise label_noise mean std pixel_stats",
        "model and method": "backbone backbone_kwargs weights weights_key weights_img_size ablation local_ratio "
        "glca_init local_queries glca_blocks distractors distractor_root distractor_stream distractor_tokens "
        "pwca_blocks drop_path_rate sie sie_coe sie_dropout sie_cameras sie_views",
        "schedule of the branches": "pwca_start pwca_warmup pwca_every glca_start",
        "optimization": "epochs batch_size gradient_accumulation_steps images_per_identity lr lr_per_512 min_lr "
        "warmup_epochs optimizer bias_lr_factor w_lr_factor weight_decay clip_grad",
        "fine-tuning": "layer_decay freeze ema lora_rank",
        "loss": "loss_weights weight_bound label_smoothing triplet_margin",
        "evaluation": "eval_batch_size eval_every feature distance normalize_features",
        "run and resume": "seed output_dir resume checkpoint_minutes",
        "trackers and sample images": "log_with tracker_project sample_images",
        "hardware and speed": "device precision use_gradient_checkpointing compile parallel num_workers cache",
    }

    # Smallest and largest value of a number; None: no limit.
    RANGES: ClassVar[dict[str, tuple[float, float | None]]] = (
        FineTuningConfig.RANGES
        | TrackingConfig.RANGES
        | {
            "drop_path_rate": (0, 0.99),
            "glca_blocks": (1, 100),
            "pwca_blocks": (1, None),
            "distractor_tokens": (0, 1),
            "pwca_every": (1, None),
            "pwca_start": (0, 1),
            "pwca_warmup": (0, 1),
            "glca_start": (0, 1),
            "flip": (0, 1),
            "color_jitter": (0, None),
            "image_noise": (0, None),
            "label_noise": (0, 1),
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
    )

    # Names of those in `given` that are flags of the command line, which stand over what --config files say.
    flags: ClassVar[frozenset[str]] = frozenset()

    # What the command line and --config files said, by name, where these settings were read from them; a run that was
    # made under other defaults is recognized by it, see `as_of`.
    given: ClassVar[Mapping[str, Any] | None] = None

    format_version: int = FORMAT_VERSION
    """Format of the settings, see `versions.py`; written into files, not set by users."""

    # --- data ---
    task: str
    """fgvc: fine-grained visual categorization; reid: object re-identification."""
    dataset: str
    """Name of the dataset."""
    data_root: str | None = None
    """Folder of the dataset, or the folder that contains it. null: searched in $DCAL_DATA and ./data by the folder's
    official name. For shards, also a pattern of the training archives."""
    download: bool = False
    """Download the dataset into data_root (null: $DCAL_DATA, else ./data) if it is not there: cub or aircraft, as dcal
    download does."""

    # --- model and method ---
    backbone: str
    """timm name, such as deit_small_patch16_224 or vit_base_patch16_224.augreg_in21k; dcal backbones lists them."""
    backbone_kwargs: dict[str, int | float | bool | str | list[int]] = field(default_factory=dict)
    """Further arguments of timm.create_model, such as '{"depth": 6}'; a list has a number for each stage."""
    weights: str = "imagenet"
    """Initial weights. imagenet: timm's pretrained weights; none: random; a weights file (.safetensors, .pth, .npz,
    ...); or a run folder, of whose best model the backbone and GLCA are loaded, not the heads."""
    weights_key: str | None = setting(None, before={1: None})
    """Nested dict or name prefix to load from a weights file, such as teacher. null: the one that fits the backbone."""
    weights_img_size: int | list[int] | None = setting(None, before={1: None})
    """Image size in pixels, one side or height and width, that a weights file was trained at; it gives the grid of the
    position embedding. null: as the file says, else a square grid."""
    ablation: Literal["full", "sa_only", "sa_glca", "sa_pwca"] = "full"
    """Branches that are trained. full: SA + GLCA + PWCA; sa_only: the plain backbone, which is the baseline."""
    local_ratio: float
    """R: share of the patch tokens, from 0 to 1, that are local queries of GLCA."""
    glca_init: Literal["random", "last_block"] = setting("last_block", before={2: "random"})
    """Initial weights of the M blocks of GLCA: a copy of the last M blocks of the backbone, or random as in the
    paper."""
    local_queries: Literal["rollout", "random", "penultimate", "local_only", "cross"] = setting(
        "rollout", before={1: "rollout"}
    )
    """Local tokens of GLCA, and which tokens attend to which. rollout: the share R of the patch tokens with the largest
    attention rollout; random: sampled; penultimate: those with the largest attention of the class token in the second
    to last block. In these three, class and local tokens attend to all tokens. local_only: rollout's tokens, which
    attend to the class token and each other only; cross: only the class token attends, to rollout's tokens. With
    glca_blocks 1, rollout, random and penultimate give equal predictions, because the class token attends to all
    tokens."""
    glca_blocks: int = setting(1, before={1: 1})
    """M: number of consecutive GLCA blocks, each with its own weights. Tokens that are not local pass unchanged."""
    distractors: Literal["any", "same_class", "other_class", "half", "dataset", "noise"] = setting(
        "any", before={1: "any"}
    )
    """Second image of PWCA. any: another image of the batch; in re-ID preferably of another identity. same_class,
    other_class: a random training image of the class (identity), or of another one; half: one of these two, with equal
    probability; dataset: a random image of distractor_root. These four read a second image per image, and PWCA takes
    twice the memory and time. noise: no image, but Gaussian noise as keys and values."""
    distractor_root: str | None = setting(None, before={1: None})
    """Folder of the images of --distractors dataset; subfolders are searched, labels are not needed."""
    distractor_stream: Literal["pwca", "sa"] = "pwca"
    """Branch of the distractor image whose keys and values PWCA uses."""
    pwca_blocks: int | None = setting(None, before={1: None})
    """T: PWCA is applied in the last T blocks of the backbone; the blocks before them compute SA only, which both
    branches share. null: all blocks."""
    distractor_tokens: float = setting(1.0, before={1: 1.0})
    """Share of the distractor's patch tokens, from 0 to 1, used as keys and values in PWCA; sampled in every step. The
    class token is always used."""
    drop_path_rate: float = 0.1
    """Stochastic depth rate of the last block; the rate grows linearly from 0 at the first block."""

    # --- schedule of the branches ---
    pwca_start: float = setting(0.0, before={1: 0.0})
    """Share of the training, from 0 to 1, after which PWCA is trained. Before, it is not computed, and the loss has no
    PWCA term."""
    pwca_warmup: float = setting(0.0, before={1: 0.0})
    """Share of the training, counted from pwca_start, over which the PWCA term of the loss grows linearly from 0 to its
    full value."""
    pwca_every: int = setting(1, before={1: 1})
    """K: after pwca_start, PWCA is computed in every K-th optimizer step only."""
    glca_start: float = setting(0.0, before={1: 0.0})
    """Share of the training, from 0 to 1, after which GLCA is trained, from its initial weights (glca_init). Before, it
    is not computed in training, and predictions are those of SA alone."""

    # --- images and augmentation ---
    img_size: int | list[int]
    """Input size in pixels: one side, or height and width (--img_size 256 128). Multiples of the patch size."""
    flip: float = 0.5
    """Probability of a horizontal flip of a training image."""
    keep_aspect: bool = setting(False, before={1: False})
    """Crop the center of each image to the aspect ratio of what it is resized to, so that it is not distorted."""
    interpolation: Literal["bicubic", "bilinear"] = setting("bicubic", before={1: "bicubic"})
    """Interpolation that images are resized by, with antialiasing."""
    color_jitter: float = setting(0.0, before={1: 0.0})
    """Brightness, contrast and saturation of training images are scaled by random factors from 1 - this to 1 + this,
    as timm's color-jitter. 0: off."""
    auto_augment: str | None = setting(None, before={1: None})
    """Augmentation policy by timm's name: rand-m9-mstd0.5-inc1 (RandAugment), augmix-m3-w3 (AugMix), original, v0 or 3a
    (AutoAugment). null: none."""
    image_noise: float = setting(0.0, before={1: 0.0})
    """Standard deviation of Gaussian noise added to normalized training images. An ablation of the paper."""
    label_noise: float = setting(0.0, before={1: 0.0})
    """Probability, from 0 to 1, that a training label is replaced by another one, sampled in every step; the training
    accuracy is that of the replaced labels. An ablation of the paper."""
    mean: float | list[float] | Literal["auto"] | None = setting("auto", before={1: None})
    """Mean of the pixel values (0 to 1) that images are normalized by: one number, or one for each of 3 channels. auto:
    as the weights file says, else (re-ID) pixel_stats, else that of the backbone. null: like auto, but the weights file
    is ignored."""
    std: float | list[float] | Literal["auto"] | None = setting("auto", before={1: None})
    """Standard deviation of the pixel values, in the form of mean; both are set together."""

    # --- optimization ---
    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images per forward pass and rank (micro-batch); at least 2 with PWCA."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step; the effective batch size is batch_size x this x ranks."""
    lr: float | None = None
    """Peak learning rate. null: lr_per_512 x effective batch size / 512."""
    lr_per_512: float
    """Peak learning rate at an effective batch size of 512; unused if lr is set."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine schedule."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up before the cosine schedule; shortened to the training's length if longer."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum 0.9."""
    bias_lr_factor: float = 1.0
    """Factor on the learning rate of biases."""
    w_lr_factor: float = 1.0
    """Factor on the learning rate of the loss weights w."""
    weight_decay: float
    """Weight decay; with AdamW it is decoupled and skips vectors and embeddings. Loss weights w have none."""
    clip_grad: float | None = 1.0
    """Largest norm of the gradient. null: no clipping."""

    # --- loss ---
    loss_weights: Literal["learned", "fixed", "sum", "mean"] = setting("learned", before={1: "learned"})
    """How the losses L of the branches are combined. learned: half the sum of e^-w L + w, with a learnable w for each
    branch; fixed: the same with w = 0, so half the sum of L; sum: their sum; mean: their mean. A branch that is not
    trained in a step is left out."""
    weight_bound: float = 2.0
    """Largest absolute value of the learnable loss weights w."""

    # --- hardware and speed ---
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 if the device multiplies it in hardware, fp16 with loss scaling on older CUDA devices, else fp32;
    resolved when a run starts, and kept when it resumes."""
    use_gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the blocks with torch.compile, which takes about a minute at the start. auto: on CUDA, if the training
    has 1,000 steps or more."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA, else MPS, else CPU."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several ranks (torchrun, accelerate launch) train one model. ddp: each rank holds all of it; fsdp: weights
    and optimizer state are sharded, for backbones that do not fit one device; slower, with the same results."""
    num_workers: int | None = None
    """DataLoader workers per rank. null: 0 on a CPU, else one per core, at most 8."""
    cache: Literal["none", "ram"] = "none"
    """ram: keep the images of both splits in memory, decoded and resized, once they are read; results are bitwise
    equal. Takes 3 x height x width bytes per image, of resize_size (re-ID: img_size): 0.9 MB at 550 x 550. Each rank
    has a cache of its own."""
    max_bad_images: int | None = None
    """Number of unreadable images that are tolerated; in training, the next image replaces each of them. null: 1 % of
    the training images, at least 10. dcal check-data finds them before a run."""

    # --- evaluation ---
    eval_batch_size: int | None = None
    """Images per forward pass and rank in evaluation. null: 4 x batch_size."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""

    # --- run and resume ---
    seed: int = 0
    """Seed of the initial weights, data order, augmentation, distractors and drop path."""
    checkpoint_minutes: float = 15.0
    """Minutes between checkpoints, in addition to one after each epoch. 0: a checkpoint after every step."""
    output_dir: str | None = None
    """Run folder. null: runs/TASK-DATASET-BACKBONE-ABLATION-seedSEED."""
    resume: str = "auto"
    """auto: resume if output_dir holds a run with the same settings; never: refuse an output_dir that holds a run; or
    the path of another run or of one of its checkpoints, from which a new run in output_dir starts (the same command
    resumes that run later)."""

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
        self.auto_augment = self.auto_augment or None
        self._check_pixel_stats()
        self._check_fine_tuning()
        self._check_tracking()
        if self.pwca_start + self.pwca_warmup > 1 + 1e-9:
            raise InputError(
                f"pwca_warmup: expected at most what is left of the training after pwca_start {self.pwca_start}, got "
                f"{self.pwca_warmup}"
            )
        if (self.distractors == "dataset") != (self.distractor_root is not None) or self.distractor_root == "":
            raise InputError(
                "distractor_root: expected the folder of the distractors with --distractors dataset, and null with "
                f"others; got {short_repr(self.distractor_root)} with --distractors {self.distractors}"
            )
        if self.ablation in ("full", "sa_pwca") and self.distractors == "any" and self.batch_size < 2:
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
