"""Settings of fine-grained visual categorization. To change one, edit its default here, set it in a --config file, or
give a flag; flags override files, which override defaults. The defaults are the paper's (arXiv 2205.02151, section
4.1), except for `glca_init` and `pwca_start`, which were measured (docs/results.md); recipes have the paper's.
All other settings are documented in `training_config.py`; any of them can get a default here too."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dual_cross_attention.configs.training_config import TrainingConfig, sides
from dual_cross_attention.configs.versions import setting


@dataclass(kw_only=True)
class FGVCConfig(TrainingConfig):
    """Fine-grained visual categorization (FGVC)."""

    RANGES: ClassVar = TrainingConfig.RANGES | {
        "label_smoothing": (0, 1),
        "val_fraction": (0.001, 0.999),
        "mixup": (0, None),
        "cutmix": (0, None),
    }
    # The paper resizes to 550 x 550 and crops 448 x 448; other input sizes keep that proportion.
    RESIZE_OVER_CROP: ClassVar[float] = 550 / 448

    # --- data ---
    task: Literal["fgvc"] = "fgvc"
    dataset: str = "cub"
    """Dataset: toy (synthetic), cub, cars, aircraft, folder (train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg and
    val_fraction), lists (train.txt and val.txt with lines `path, class`), csv (data_root is a CSV file with the columns
    path and label), hf:ORG/NAME (of the Hugging Face Hub; hf with data_root: a folder of Parquet or Arrow files or of
    images, as the library datasets reads them), or shards (tar archives, such as those of dcal shard; data_root is
    DIR/train-{000000..000127}.tar, or DIR)."""
    val_fraction: float | None = setting(None, before={1: None})
    """For images without a split (class folders of dataset folder, a csv without the column split, hf with the split
    train only): fraction of each
    class to validate on, such as 0.2. Images are chosen by a hash of their names; byte-identical files stay on one
    side."""
    image_column: str | None = setting(None, before={1: None})
    """Column of the images in a table (datasets csv and hf). null: found by its name."""
    label_column: str | None = setting(None, before={1: None})
    """Column of the classes in a table. null: found by its name."""

    # --- model and method ---
    backbone: str = "deit_tiny_patch16_224"
    local_ratio: float = 0.1
    drop_path_rate: float = 0.1

    # --- schedule of the branches ---
    # The paper trains PWCA from the start; with the schedules measured in docs/results.md that costs accuracy.
    pwca_start: float = setting(0.5, before={2: 0.0})

    # --- images and augmentation ---
    img_size: int | list[int] = 448
    resize_size: int | list[int] | None = None
    """Size in pixels that images are resized to before the crop to img_size: one side, or height and width. null: in
    proportion to img_size (the paper's 550 for 448)."""

    mixup: float = setting(0.0, before={1: 0.0})
    """Alpha of MixUp, such as 0.8: each training image is blended with another one of the batch, and so are their
    labels. 0: off. With cutmix too, each batch has one of the two."""
    cutmix: float = setting(0.0, before={1: 0.0})
    """Alpha of CutMix, such as 1: a rectangle of each training image is replaced by that of another one of the batch,
    and the labels are mixed by area. 0: off."""
    class_balance: bool = setting(False, before={1: False})
    """Sample training images with replacement so that all classes are equally likely; an epoch has as many images as
    without."""

    # --- optimization ---
    epochs: int = 100
    batch_size: int = 16
    """Images per forward pass and rank (micro-batch); at least 2 with PWCA. 2, 4 or 8 on devices with little memory."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step; the effective batch size is batch_size x this x ranks."""
    use_gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    lr_per_512: float = 5e-4
    """Peak learning rate at an effective batch size of 512, unused if lr is set; the paper's 5e-4 gives 1.56e-5 at
    batch size 16."""
    weight_decay: float = 0.05
    """Decoupled weight decay of AdamW; vectors, embeddings and the loss weights w have none."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy loss, from 0 to 1."""

    def __post_init__(self):
        super().__post_init__()
        if self.resize_size is not None:
            self.resize_size = sides("resize_size", self.resize_size)

    def resize(self) -> list[int]:
        """Height and width that images are resized to before the crop, in pixels."""
        return self.resize_size or [round(side * self.RESIZE_OVER_CROP) for side in self.img_size]


@dataclass(kw_only=True)
class ToyConfig(FGVCConfig):
    """The built-in toy task: synthetic images, a small ViT from scratch, minutes on a CPU."""

    RESIZE_OVER_CROP: ClassVar[float] = 70 / 64

    dataset: str = "toy"
    backbone: str = "vit_tiny_patch16_224"
    backbone_kwargs: dict[str, int | float | bool | str | list[int]] = field(
        default_factory=lambda: {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
    )
    weights: str = "none"
    img_size: int | list[int] = 64
    epochs: int = 10
    batch_size: int = 16
    lr: float | None = 5e-4
    warmup_epochs: float = 1.0
    # A ViT this small is slower in bf16 on a CPU (docs/results.md).
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("fp32", before={1: "auto"})


# Default settings of each dataset.
FGVC_CONFIGS: dict[str, type[FGVCConfig]] = {
    "toy": ToyConfig,
    "cub": FGVCConfig,
    "cars": FGVCConfig,
    "aircraft": FGVCConfig,
    "folder": FGVCConfig,
    "lists": FGVCConfig,
    "csv": FGVCConfig,
    "hf": FGVCConfig,
    "shards": FGVCConfig,
}
