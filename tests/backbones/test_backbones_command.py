"""`dcal backbones`."""

import json

import pytest
import timm

from dual_cross_attention.backbones.catalog import describe
from dual_cross_attention.backbones.registry import FAMILIES, list_backbones
from dual_cross_attention.commands.backbones import BackbonesOptions
from dual_cross_attention.configs.values import type_hints
from tests.helpers import assert_refused


def test_rows_are_timms(dcal):
    outcome = dcal("backbones", "--family", "hybrid", "--name", "r26_s32")
    assert outcome.status == 0
    heading, *rows = outcome.out.splitlines()
    assert "license" in heading and [row.split()[0] for row in rows] == [
        "vit_base_r26_s32_224",
        "vit_small_r26_s32_224",
        "vit_small_r26_s32_384",
    ]
    assert "384x384" in rows[2] and "32x32" in rows[2] and "apache-2.0" in rows[2] and "class token" in rows[2]
    assert "no weights" in rows[0]


def test_json_has_what_is_refused_and_why(dcal):
    outcome = dcal("backbones", "--name", "test_vit", "--json", "-")
    listed = json.loads(outcome.out)["backbones"]
    assert [each["name"] for each in listed] == ["test_vit", "test_vit2", "test_vit3", "test_vit4"]
    assert [each["feature"] for each in listed] == ["class token", "average", "attention pool", "average"]
    assert [each["cross"] for each in listed] == [True, False, False, False]
    parallel = json.loads(dcal("backbones", "--name", "pwee_patch16", "--refused", "--json", "-").out)["backbones"]
    assert parallel[0]["branches"] == [] and "ParallelScalingBlock" in parallel[0]["refused"]
    assert json.loads(dcal("backbones", "--name", "pwee_patch16", "--json", "-").out)["backbones"] == []


def test_parameters_and_licenses_are_those_of_the_model():
    info = describe("vit_small_patch16_dinov3_qkvb")
    model = timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0)
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert set(info.licenses) == {"dinov3-license", "fair-noncommercial-research-license"}
    assert (info.family, info.feature, info.patch_size, info.input_size) == ("eva", "average", (16, 16), (256, 256))


def test_families_of_the_flag_are_those_that_there_are(dcal):
    literal = type_hints(BackbonesOptions)["family"].__args__[0]
    assert set(literal.__args__) == {each.name for each in FAMILIES}
    assert sum(len(list_backbones(each.name)) for each in FAMILIES) == len(list_backbones())
    assert_refused(dcal("backbones", "--name", "resnet18"), "resnet18")
    with pytest.raises(ValueError, match="one of vit"):
        list_backbones("cnn")
