"""Settings of re-identification. To change one, edit its default here, set it in a --config file, or give a flag; flags
override files, which override defaults. The defaults are the paper's (arXiv 2205.02151, section 4.1), except for
`glca_init`, which was measured (docs/results.md), and those of TransReID (arXiv 2102.04378) where the paper does not
say. Recipes have the paper's.
All other settings are documented in `training_config.py`; any of them can get a default here too."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dual_cross_attention.configs.training_config import TrainingConfig
from dual_cross_attention.configs.versions import setting
from dual_cross_attention.errors import InputError


@dataclass(kw_only=True)
class ReIDConfig(TrainingConfig):
    """Object re-identification (re-ID) of people."""

    RANGES: ClassVar = TrainingConfig.RANGES | {
        "label_smoothing": (0, 1),
        "triplet_margin": (0, None),
        "images_per_identity": (2, None),
        "padding": (0, None),
        "erasing": (0, 1),
        "sie_coe": (0, None),
        "sie_dropout": (0, 1),
    }

    # --- data ---
    task: Literal["reid"] = "reid"
    dataset: str = "market1501"
    """Dataset: toy (synthetic), market1501, dukemtmc, msmt17, veri776, folder (train/, query/ and gallery/ with
    IDENTITY/CAMERA_*.jpg, or train.csv, query.csv and gallery.csv; test/ or test.csv in place of query and gallery),
    or shards (tar archives, such as those of dcal shard; data_root is DIR/train-{000000..000127}.tar, or DIR)."""
    cameras: Literal["auto", "none", "name"] = setting("auto", before={1: "name"})
    """Cameras of dataset folder. name: from file names (CAMERA_*.jpg) or the column camera of a CSV file; a query
    ignores gallery images of its identity and camera. none: there are none, and a query ignores only its own file.
    auto: name if the names are cameras, which recur across identities, else none; what it decides is printed."""
    bbox: Literal["crop", "ignore"] = setting("crop", before={1: "ignore"})
    """Column bbox of the CSV files of dataset folder (x, y, width, height in pixels): crop images by it, or ignore
    it."""
    views: str | None = setting(None, before={1: None})
    """CSV file with the columns path and view (front, rear, …) for sie view. A path is the end of an image's path, such
    as its file name. Images that it does not list are of an unknown view."""

    # --- model and method ---
    backbone: str = "deit_tiny_patch16_224"
    local_ratio: float = 0.3
    drop_path_rate: float = 0.1

    sie: Literal["none", "camera", "view", "camera_view"] = setting("none", before={1: "none"})
    """Side information embedding of TransReID: a learned vector per camera, per view (see views), or per pair of camera
    and view, times sie_coe, is added to all tokens before the first block. Images whose camera or view is not one of
    the training get none: those of other datasets, and all outside of an evaluation on the dataset of the run (embed,
    index, export)."""
    sie_coe: float = setting(3.0, before={1: 3.0})
    """Factor of the side information embedding; 3 in TransReID."""
    sie_dropout: float = setting(0.1, before={1: 0.1})
    """Probability that a training image counts as one of an unknown camera or view, so that the model learns features
    of such images too. TransReID: 0."""
    sie_cameras: tuple[str, ...] = setting((), before={1: ()})
    """Names of the cameras that have an embedding; images of others count as of an unknown camera. Empty: those of the
    training images, which a run records here when it begins."""
    sie_views: tuple[str, ...] = setting((), before={1: ()})
    """Names of the views that have an embedding, likewise."""

    # --- images and augmentation ---
    img_size: int | list[int] = field(default_factory=lambda: [256, 128])
    padding: int = 10
    """Width in pixels of the black border around a training image before the random crop."""
    erasing: float = 0.5
    """Probability that a random rectangle of a training image is erased."""
    pixel_stats: Literal["half", "backbone"] = "half"
    """Mean and standard deviation that images are normalized by, if neither mean and std nor the weights file give
    them. half: 0.5, as in TransReID; backbone: those of the backbone's pretraining."""

    # --- optimization ---
    epochs: int = 120
    batch_size: int = 64
    """Images per forward pass and rank (micro-batch): identities x images_per_identity."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step; the effective batch size is batch_size x this x ranks."""
    use_gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    images_per_identity: int = 4
    """K: images of each identity in a batch; 64 images are 16 identities x 4."""
    lr_per_512: float = 0.064
    """Peak learning rate at an effective batch size of 512, unused if lr is set; 0.064 gives the paper's 0.008 at batch
    size 64."""
    warmup_epochs: float = 5.0
    optimizer: Literal["adamw", "sgd"] = "sgd"
    bias_lr_factor: float = 2.0
    w_lr_factor: float = 0.01
    """Factor on the learning rate of the loss weights w. With SGD, a factor of 1 lets w reach log(loss) within an
    epoch, so every branch is weighted by 1 / loss, and short trainings end far below the baseline
    (docs/results.md)."""
    weight_decay: float = 1e-4
    clip_grad: float | None = None
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy loss over identities, from 0 to 1."""
    triplet_margin: float | None = None
    """Margin of the triplet loss. null: the soft margin log(1 + exp(d_positive - d_negative))."""

    # --- evaluation ---
    feature: Literal["before_neck", "after_neck"] = "before_neck"
    """Features for retrieval: class tokens before or after the BN neck."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """Distance between query and gallery features."""
    normalize_features: bool = True
    """Scale features to an L2 norm of 1 before distances are computed."""
    eval_every: int = 10

    @property
    def side_information(self) -> dict[str, tuple[str, ...]]:
        """Names of the cameras ("camera") and of the views ("view") that the embedding is of; empty: there is none."""
        named = {"camera": self.sie_cameras, "view": self.sie_views}
        return {kind: names for kind, names in named.items() if kind in self.sie.split("_")}

    @property
    def num_side_vectors(self) -> int:
        """Vectors of that: one per camera, per view, or per pair of both."""
        return math.prod(map(len, self.side_information.values())) if self.side_information else 0

    def __post_init__(self):
        super().__post_init__()
        self.sie_cameras, self.sie_views = tuple(self.sie_cameras), tuple(self.sie_views)
        for name, chosen in (("sie_cameras", self.sie_cameras), ("sie_views", self.sie_views)):
            if len({*chosen}) < len(chosen):
                raise InputError(f"{name}: expected different names, got one twice")
        if self.sie != "none" and self.freeze:
            raise InputError(
                f"sie {self.sie} is trained through all blocks, and freeze {self.freeze} runs some without gradients: "
                "take one"
            )
        if self.batch_size % self.images_per_identity or self.batch_size < 2 * self.images_per_identity:
            raise InputError(
                f"batch_size {self.batch_size}: the triplet loss needs at least two identities of "
                f"{self.images_per_identity} images, so a multiple of images_per_identity, at least "
                f"{2 * self.images_per_identity}"
            )


@dataclass(kw_only=True)
class VehicleReIDConfig(ReIDConfig):
    """Re-identification of vehicles: square images."""

    dataset: str = "veri776"
    img_size: int | list[int] = 256


@dataclass(kw_only=True)
class ReIDToyConfig(ReIDConfig):
    """The built-in toy task: synthetic people, a small ViT from scratch, minutes on a CPU."""

    dataset: str = "toy"
    backbone: str = "vit_tiny_patch16_224"
    backbone_kwargs: dict[str, int | float | bool | str | list[int]] = field(
        default_factory=lambda: {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
    )
    weights: str = "none"
    img_size: int | list[int] = field(default_factory=lambda: [64, 32])
    padding: int = 4
    erasing: float = 0.25
    epochs: int = 15
    batch_size: int = 32
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float | None = 1e-3
    # A ViT this small is slower in bf16 on a CPU (docs/results.md).
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("fp32", before={1: "auto"})
    bias_lr_factor: float = 1.0
    w_lr_factor: float = 1.0
    weight_decay: float = 0.05
    warmup_epochs: float = 2.0
    eval_every: int = 5


# Default settings of each dataset.
REID_CONFIGS: dict[str, type[ReIDConfig]] = {
    "toy": ReIDToyConfig,
    "market1501": ReIDConfig,
    "dukemtmc": ReIDConfig,
    "msmt17": ReIDConfig,
    "veri776": VehicleReIDConfig,
    "folder": ReIDConfig,
    "shards": ReIDConfig,
}
