"""Recipes and the table of published results."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import timm
import yaml

from dual_cross_attention.configs import CONFIGS
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.configs.recipes import BACKBONES, DATASETS, FOLDER, OURS, recipe_names
from dual_cross_attention.configs.recipes.published import published_results
from dual_cross_attention.errors import InputError
from dual_cross_attention.models import list_backbones
from dual_cross_attention.report.published import recipe_of

# Of the revision that had a file for each recipe; never to be renewed.
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "recipes.json").read_text())
# Plain backbone -> DCAL, as the comments in those files said: top-1 %, or mAP / rank-1 %.
COMMENTS = """
aircraft_deit_base 90.3 -> 92.6
aircraft_deit_small 88.1 -> 90.0
aircraft_deit_tiny 84.7 -> 87.4
aircraft_vit_base 90.0 -> 91.5
cars_deit_base 92.9 -> 93.8
cars_deit_small 90.7 -> 92.3
cars_deit_tiny 87.2 -> 89.4
cars_vit_base 92.5 -> 93.4
cub_deit_base 88.0 -> 88.8
cub_deit_small 85.8 -> 87.6
cub_deit_tiny 82.1 -> 84.6
cub_vit_base 90.8 -> 91.4
duke_deit_base 79.1/88.7 -> 80.2/89.6
duke_deit_small 75.7/87.6 -> 77.4/87.9
duke_deit_tiny 69.5/82.9 -> 71.7/84.9
duke_vit_base 78.9/89.4 -> 80.1/89.0
market_deit_base 86.6/94.4 -> 87.2/94.5
market_deit_small 84.3/93.7 -> 85.3/94.0
market_deit_tiny 77.9/90.3 -> 79.8/91.8
market_vit_base 87.1/94.3 -> 87.5/94.7
msmt17_deit_base 60.5/81.6 -> 62.3/83.1
msmt17_deit_small 53.3/75.0 -> 55.1/77.3
msmt17_deit_tiny 42.1/63.9 -> 44.9/68.2
msmt17_vit_base 61.6/81.4 -> 64.0/83.1
veri776_deit_base 78.3/95.9 -> 80.0/96.5
veri776_deit_small 76.7/95.5 -> 78.1/95.9
veri776_deit_tiny 71.3/94.3 -> 74.1/94.7
veri776_vit_base 78.1/96.0 -> 80.2/96.9
"""
PUBLISHED = [
    (name, base.split("/"), dcal.split("/")) for name, base, dcal in re.findall(r"(\w+) (\S+) -> (\S+)", COMMENTS)
]


# --- recipes ---


def _pair(baseline, dcal):
    return {"sa_only": baseline, "full": dcal}


def test_a_recipe_for_each_published_row():
    """Tables 1 and 2 of the paper, where the backbone is of a family that there is; the others are ours."""
    ours = {name for name in recipe_names() if name.partition("_")[2] in OURS}
    later = {"cub_cait_xs24", "cub_swin_tiny", "msmt17_swin_tiny"}
    later |= {f"{dataset}_r50_vit_base" for dataset in ("cub", "cars", "aircraft")}
    assert set(GOLDEN) == {name for name, *_ in PUBLISHED}
    assert set(recipe_names()) - ours == set(GOLDEN) | later
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(DATASETS)


@pytest.mark.parametrize("name", GOLDEN)
def test_recipes_give_the_settings_they_always_gave(name):
    config = parse_config(["--config", name])
    assert type(config).__name__ == GOLDEN[name]["class"]
    assert sorted(config.given) == GOLDEN[name]["given"] and config.flags == frozenset()
    settings = json.loads(json.dumps(asdict(config)))
    assert {key: settings[key] for key in GOLDEN[name]["settings"]} == GOLDEN[name]["settings"]


@pytest.mark.parametrize("name", GOLDEN)
def test_recipes_are_the_papers(name):
    config = parse_config(["--config", name, "--data_root", "somewhere"])
    dataset, _, backbone = name.partition("_")
    assert config.dataset.startswith(dataset) and config.data_root == "somewhere"
    assert config.backbone.startswith(backbone) and config.backbone.partition(".")[0] in list_backbones()
    assert config.weights == "imagenet" and config.ablation == "full" and config.lr is None
    if config.task == "fgvc":
        assert (config.img_size, config.resize(), config.epochs) == ([448, 448], [550, 550], 100)
        assert (config.lr_per_512, config.weight_decay, config.local_ratio) == (5e-4, 0.05, 0.1)
    else:
        assert (config.img_size, config.epochs) == ([256, 256 if dataset == "veri776" else 128], 120)
        assert (config.lr_per_512, config.weight_decay, config.local_ratio) == (0.064, 1e-4, 0.3)


@pytest.mark.parametrize("dataset", ["cub", "cars", "aircraft"])
def test_hybrid_recipes_are_those_of_the_table(dataset):
    config, plain = (parse_config(["--config", f"{dataset}_{name}"]) for name in ("r50_vit_base", "vit_base"))
    assert config.backbone.startswith("vit_base_r50_s16_") and config.backbone.endswith("in21k")
    assert replace(config, backbone=plain.backbone) == plain
    published = {
        each.ablation: each.value for each in published_results(dataset=config.dataset, backbone="r50_vit_base")
    }
    assert published == {"cub": _pair(91.3, 92.0), "cars": _pair(94.0, 95.3), "aircraft": _pair(92.4, 93.3)}[dataset]


def test_the_recipe_of_cait_is_that_of_the_table():
    config, plain = (parse_config(["--config", f"cub_{name}"]) for name in ("cait_xs24", "vit_base"))
    assert config.backbone in timm.list_pretrained("cait_xs24_384") and config.ablation == "full"
    assert replace(config, backbone=plain.backbone) == plain
    published = published_results(dataset="cub", backbone="cait_xs24")
    assert {each.ablation: each.value for each in published} == _pair(88.5, 89.7)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.partition("_")[2] in OURS])
def test_recipes_of_ours_fit_their_backbone_and_claim_no_result(name):
    config = parse_config(["--config", name])
    dataset, _, backbone = name.partition("_")
    paper = parse_config(["--config", f"{dataset}_vit_base"])
    assert replace(config, backbone=paper.backbone, backbone_kwargs=paper.backbone_kwargs) == paper
    architecture = config.backbone.partition(".")[0]
    patch = int(re.search(r"patch(\d+)", architecture)[1])
    assert architecture in list_backbones() and config.backbone in timm.list_pretrained(architecture)
    assert all(side % patch == 0 for side in config.img_size)
    assert published_results(backbone=backbone) == [] and recipe_of(config) is None
    assert (config.backbone_kwargs == {"global_pool": "token"}) == ("dinov3" in name)


@pytest.mark.parametrize("name", ["market_r50_vit_base", "market_dinov2_base", "duke_eva02_base", "cars_cait_xs24"])
def test_no_recipe_where_the_paper_or_the_patch_has_none(name):
    assert name not in recipe_names()
    with pytest.raises(InputError, match="recipe"):
        parse_config(["--config", name])


def test_recipes_leave_the_machine_to_the_user():
    """A batch_size edited in the config for a small device stays."""
    for dataset in DATASETS:
        left = {"batch_size", "gradient_accumulation_steps", "use_gradient_checkpointing", "precision", "num_workers"}
        assert not left & yaml.safe_load((FOLDER / f"{dataset}.yaml").read_text()).keys()


def test_a_recipe_without_a_backbone_takes_any():
    assert parse_config(["--config", "cub"]).given == {
        name: value for name, value in parse_config(["--config", "cub_vit_base"]).given.items() if name != "backbone"
    }
    assert parse_config(["--config", "cub", "--backbone", "vit_small_patch16_224"]).backbone == "vit_small_patch16_224"


def test_the_later_of_two_recipes_wins():
    """Also where both are of one file, or one is given again."""
    for names in (("cub_vit_base", "cub_deit_small"), ("cub_deit_small", "cub_deit_base", "cub_deit_small")):
        words = [word for name in names for word in ("--config", name)]
        assert parse_config(words).backbone == BACKBONES["deit_small"]


def test_a_file_here_wins_over_a_recipe_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cub_deit_tiny").write_text("epochs: 3\n")
    assert parse_config(["--config", "cub_deit_tiny"]).epochs == 3


@pytest.mark.parametrize("name", ["cub_deit_huge", "deit_tiny", "cub_", "published", "__init__", "../recipes/cub"])
def test_no_other_recipes(name):
    with pytest.raises(InputError, match=r"YAML.*recipe.*cub, .*deit_tiny, ") as caught:
        parse_config(["--config", name])
    assert ("did you mean cub_deit_base?" in str(caught.value)) == (name == "cub_deit_huge")


# --- published results ---


@pytest.mark.parametrize(("name", "base", "dcal"), PUBLISHED)
def test_published_results_are_those_of_the_recipes(name, base, dcal):
    config = parse_config(["--config", name])
    backbone = name.partition("_")[2]
    for ablation, values in (("sa_only", base), ("full", dcal)):
        found = published_results(
            dataset=config.dataset,
            backbone=backbone,
            ablation=ablation,
            source="Table 1" if config.task == "fgvc" else "Table 2",
        )
        metrics = ("top1",) if config.task == "fgvc" else ("mAP", "rank1")
        assert {each.metric: each.value for each in found} == dict(zip(metrics, map(float, values), strict=True))


def test_published_results_are_plausible():
    results = published_results()
    datasets = {name for task in CONFIGS.values() for name in task}
    assert len({replace(each, value=0) for each in results}) == len(results)
    for each in results:
        assert each.dataset in datasets and each.ablation in ("full", "sa_only", "sa_glca", "sa_pwca")
        assert each.metric == "top1" if each.dataset in CONFIGS["fgvc"] else each.metric in ("mAP", "rank1")
        assert 40 < each.value < 100
    tables = {each.source: sum(other.source == each.source for other in results) for each in results}
    assert tables == {"Table 1": 34, "Table 2": 66, "ablations": 26}


def test_ablations_of_the_paper():
    """DeiT-Tiny on CUB: baseline 82.1, GLCA and PWCA 83.1 each, both 84.6, of which SA alone 84.3."""
    found = published_results(dataset="cub", backbone="deit_tiny", source="ablations")
    by_branch = {each.ablation: each.value for each in found if not each.variant}
    assert by_branch == {"sa_only": 82.1, "sa_glca": 83.1, "sa_pwca": 83.1, "full": 84.6}
    assert [each.value for each in found if each.ablation == "full"] == [84.6, 84.3]
