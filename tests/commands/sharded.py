"""What tests of `dcal shard` and of trainings from archives share: settings, people, and the command."""

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
TINY = [
    "--backbone=vit_tiny_patch16_224",
    '--backbone_kwargs={"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}',
    "--weights=none",
    "--epochs=2",
    "--batch_size=8",
    "--lr=1e-3",
    "--num_workers=0",
    "--device=cpu",
]
TASKS = {
    "fgvc": [*TINY, "--img_size=32"],
    "reid": [
        *TINY,
        "--task=reid",
        "--img_size",
        "32",
        "16",
        "--padding=2",
        "--warmup_epochs=0",
        "--eval_every=1",
        "--images_per_identity=2",
    ],
}


def write_crowd(root: Path) -> Path:
    """A dataset of re-identification: 10 people to train on, 3 others, under 2 cameras."""
    for split, people, takes in (("train", range(10), 3), ("query", range(10, 13), 1), ("gallery", range(10, 13), 2)):
        for person in people:
            (root / split / f"{person}").mkdir(parents=True)
            for camera in range(2):
                for take in range(takes):
                    image = Image.new("RGB", (16, 32), (20 * person, 255 - 15 * person, 60 + 90 * camera + take))
                    image.save(root / split / f"{person}" / f"{camera}_{take}.png")
    return root


def shard(dcal, task: str, source: Path, target: Path, *more: object) -> list[str]:
    outcome = dcal(
        "shard", "--task", task, "--dataset", "folder", "--data_root", source, "--output_dir", target,
        "--num_workers", 0, *more,
    )  # fmt: skip
    assert (outcome.status, outcome.err) == (0, "")
    return outcome.out.splitlines()


def archives_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}
