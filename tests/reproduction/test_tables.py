"""Rows of the paper's tables: names, settings, published numbers."""

import pytest

from dual_cross_attention import InputError
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.configs.recipes.published import published_results
from dual_cross_attention.configs.without_effect import settings_without_effect
from dual_cross_attention.reproduction.tables import TABLES, TableRow, table_rows

ROWS = [(table, row) for table in TABLES for row in table_rows(table, distractor_root="photos")]


@pytest.mark.parametrize("scale", ["paper", "cpu"])
@pytest.mark.parametrize(("table", "row"), [each for each in ROWS if not each[1].missing], ids=lambda each: str(each))
def test_every_row_is_a_valid_training(table, row, scale):
    if not isinstance(row, TableRow):
        return
    config = parse_config(row.arguments(scale))
    assert config.ablation == row.ablation and config.task == row.task
    if scale == "cpu":
        assert config.dataset == "toy" and config.epochs <= 3
        if row.ablation in ("full", "sa_glca"):
            assert config.glca_init == row.settings.get("glca_init", "random")
        if row.ablation in ("full", "sa_pwca"):
            assert config.pwca_start == 0.0
    else:
        assert (config.format_version, config.epochs) == (1, 100 if row.task == "fgvc" else 120)
        assert {name: getattr(config, name) for name in row.settings} == row.settings
    assert settings_without_effect(config) == []


def test_all_published_results_of_the_tables_are_in_a_row():
    of_rows = {(row.dataset, row.backbone, row.ablation, metric, value)
               for _, row in ROWS for metric, value in row.published.items()}  # fmt: skip
    for each in published_results():
        if each.variant != "inference with SA alone":
            backbone = each.backbone or "vit_base"
            assert (each.dataset, backbone, each.ablation, each.metric, each.value) in of_rows, each


@pytest.mark.parametrize("table", TABLES)
def test_names_are_unique_and_baselines_are_rows(table):
    rows = {row.name: row for row in table_rows(table)}
    assert len(rows) == len(table_rows(table))
    for row in rows.values():
        assert row.baseline is None or rows[row.baseline].ablation == "sa_only"
        assert (row.baseline is None) == row.name.endswith("-sa_only")


def test_equal_rows_of_several_tables_have_one_name():
    """So that they are trained once."""
    by_arguments: dict[tuple[str, ...], set[str]] = {}
    for _, row in ROWS:
        by_arguments.setdefault(tuple(row.arguments("paper")), set()).add(row.name)
    assert all(len(names) == 1 for names in by_arguments.values())
    by_name: dict[str, set[tuple[str, ...]]] = {}
    for _, row in ROWS:
        if not row.missing:
            by_name.setdefault(row.run_name("cpu"), set()).add(tuple(row.arguments("cpu")))
    assert all(len(arguments) == 1 for arguments in by_name.values())


def test_rows_of_the_ablations():
    found = {row.name: row.published for row in table_rows("ablations")}
    assert found == {
        "cub-deit_tiny-sa_only": {"top1": 82.1},
        "cub-deit_tiny-sa_glca": {"top1": 83.1},
        "cub-deit_tiny-sa_pwca": {"top1": 83.1},
        "cub-deit_tiny-full": {"top1": 84.6},
    }


def test_patterns_choose_rows_with_their_baselines():
    assert [row.name for row in table_rows("table1", ["aircraft-deit_base-full"])] == [
        "aircraft-deit_base-sa_only",
        "aircraft-deit_base-full",
    ]
    assert len(table_rows("table2", ["market*", "duke*"])) == 16
    with pytest.raises(InputError, match="no row of table1 matches 'nabirds"):
        table_rows("table1", ["cub-*", "nabirds-*"])
    with pytest.raises(InputError, match="table3"):
        table_rows("table3")


def test_what_cannot_be_trained_says_why():
    missing = {row.name: row.missing for row in table_rows("table1") if row.missing}
    assert "cub-swin_tiny-sa_pwca" not in missing and "cub-deit_tiny-full" not in missing
    assert all("no recipe" in reason for reason in missing.values())
    (row,) = (row for row in table_rows("distractors") if row.name == "cub-deit_tiny-sa_pwca-dataset")
    assert "--distractor_root" in row.missing
