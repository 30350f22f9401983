"""The paper's numbers stand beside a run only where the run has the setting of a recipe."""

import pytest

from dual_cross_attention.configs import CONFIGS
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.configs.recipes.published import published_results
from dual_cross_attention.report.published import SPLITS, published_for
from dual_cross_attention.report.settings import different, from_defaults

CUB, MARKET = (200, 5794), (751, 3368)


def test_the_setting_of_a_recipe_is_comparable():
    found = published_for(parse_config(["--config", "cub_deit_tiny", "--seed=3", "--num_workers=2"]), *CUB)
    assert found.is_comparable and {name: each.value for name, each in found.results.items()} == {"top1": 84.6}
    half = ["--batch_size=8", "--gradient_accumulation_steps=2"]
    assert published_for(parse_config(["--config", "cub_deit_tiny", *half]), *CUB).is_comparable
    baseline = published_for(parse_config(["--config", "market_vit_base", "--ablation=sa_only"]), *MARKET)
    assert baseline.is_comparable and baseline.results["mAP"].value == 87.1 and baseline.results["rank1"].value == 94.3


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--img_size=96"], "img_size"),
        (["--epochs=20"], "epochs"),
        (["--lr=1e-4"], "peak learning rate"),
        (["--batch_size=32"], "effective batch size"),
        (["--weights=none"], "weights"),
        (["--local_queries=random"], "local_queries"),
    ],
)
def test_another_setting_is_not_comparable(flags, word):
    found = published_for(parse_config(["--config", "cub_deit_tiny", *flags]), *CUB)
    assert not found.is_comparable and any(line.startswith(word) for line in found.differences)
    assert found.results["top1"].value == 84.6


def test_a_cut_of_the_data_is_not_comparable():
    found = published_for(parse_config(["--config", "cub_deit_tiny"]), 100, 2903)
    assert found.differences == [
        "other data: 100 classes or training identities instead of 200",
        "other data: 2,903 test images or queries instead of 5,794",
    ]


def test_what_the_paper_does_not_have():
    assert published_for(parse_config(["--dataset=toy"]), 10, 500) is None
    assert published_for(parse_config(["--config", "cars_deit_tiny", "--ablation=sa_glca"]), 196, 8041) is None
    assert published_for(parse_config(["--config", "cub", "--backbone=vit_tiny_patch16_224"]), *CUB) is None


def test_every_dataset_with_a_recipe_has_its_splits():
    plain = ("deit_tiny", "deit_small", "deit_base", "vit_base")
    assert {each.dataset for each in published_results() if each.backbone in plain} == SPLITS.keys()


def test_differences_of_settings():
    settings = CONFIGS["fgvc"]["cub"]
    assert from_defaults(settings(num_workers=3, data_root="a", output_dir="b", seed=4)) == []
    assert [(each.name, each.values) for each in from_defaults(settings(epochs=7))] == [("epochs", ("7", "100"))]
    two = different([settings(lr=1e-4), settings(seed=1)])
    assert {each.name: each.values for each in two} == {"lr": ("0.0001", "null"), "seed": ("0", "1")}
    assert dict(different([settings(), CONFIGS["reid"]["toy"]()]))["padding"] == ("–", "4")
