"""LoRA: what it adds in every block and every branch, what is trained, and merging."""

import copy
import re

import pytest
import torch
from torch import nn

from dual_cross_attention import InputError, create_model
from dual_cross_attention.models.lora import add_lora, merge_lora
from tests.helpers import is_frozen, random_images, tiny_model

RANK = 4
DISTRACTORS = torch.tensor([1, 2, 3, 0])
BLOCKS = ["backbone.blocks.0", "backbone.blocks.1", "backbone.blocks.2", "glca_block.block", "more_glca_blocks.0.block"]
OPTIONS = {"glca_init": "last_block", "glca_blocks": 2, "sharpness": 4.0}


def with_lora(only: str = "", **options):
    """A model whose updates are not zero in the layers whose names have `only`."""
    model = tiny_model(**OPTIONS | options)
    add_lora(model, RANK, in_glca=True)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(r"\.weight\.0\.b$", name) and only in name:
                nn.init.normal_(parameter, std=0.2)
    return model


def merged(model, **options):
    """A model without LoRA that has the merged weights of another."""
    plain = tiny_model(**OPTIONS | options)
    plain.load_state_dict(merge_lora(model.state_dict()))  # strict: the names are those of a model without LoRA
    return plain


def outputs(model) -> dict[str, torch.Tensor]:
    """Logits and features of all branches in training, and queries, keys and tokens of every layer at inference."""
    found = {}
    model.train()
    with torch.no_grad():
        out = model(random_images(), DISTRACTORS)
    for branch in ("sa", "pwca", "glca"):
        found |= {f"{branch} logits": out.logits[branch], f"{branch} features": out.features[branch]}
    trace = model.eval().trace(random_images(), patch_tokens=True)
    found |= {f"query {layer}": query for layer, query in enumerate(trace.queries)}
    found |= {f"key {layer}": key for layer, key in enumerate(trace.keys)}
    return found | {"tokens": trace.tokens, "last_input": trace.last_input, "glca": trace.glca}


def assert_equal_outputs(one, other):
    ours, theirs = outputs(one), outputs(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("only", ["", *BLOCKS])
@pytest.mark.parametrize("local_queries", ["rollout", "cross"])
def test_merged_is_applied_in_every_block_and_branch(only, local_queries):
    model = with_lora(only, local_queries=local_queries)
    assert_equal_outputs(model, merged(model, local_queries=local_queries))


@pytest.mark.parametrize("layer", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_update_of_each_layer_reaches_the_branches(block, layer):
    """Those of the backbone change all branches, those of GLCA change GLCA alone; none vanishes."""
    base, model = outputs(with_lora("nothing")), outputs(with_lora(f"{block}.{layer}"))
    changed = {
        branch
        for branch in ("sa", "pwca", "glca")
        if (base[f"{branch} logits"] - model[f"{branch} logits"]).abs().max() > 1e-3
    }
    assert changed == ({"sa", "pwca", "glca"} if block.startswith("backbone") else {"glca"})


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("block", BLOCKS)
def test_query_key_and_value_each_have_their_update(block, part):
    """They are slices of one weight; of each, the update reaches GLCA's prediction."""
    base, model = with_lora("nothing"), with_lora(f"{block}.attn.qkv")
    width = model.backbone.embed_dim
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(f"{block}.attn.qkv") and name.endswith(".b"):
                kept = parameter[part * width : (part + 1) * width].clone()
                parameter.zero_()
                parameter[part * width : (part + 1) * width] = kept
    assert (outputs(base)["glca logits"] - outputs(model)["glca logits"]).abs().max() > 1e-4
    assert_equal_outputs(model, merged(model))


def test_it_starts_as_the_model_without():
    model = tiny_model(**OPTIONS)
    adapted = copy.deepcopy(model)
    add_lora(adapted, RANK, in_glca=True)
    assert_equal_outputs(adapted, model)


@pytest.mark.parametrize("in_glca", [False, True])
def test_what_is_trained(in_glca):
    """Two matrices for each linear layer of a block, heads, and GLCA: in full where its blocks are no copies."""
    model = tiny_model()
    before = {name: parameter.shape for name, parameter in model.named_parameters()}
    add_lora(model, RANK, in_glca)
    trained = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {}
    for name, shape in before.items():
        in_block = name.startswith("backbone.blocks") or (in_glca and name.startswith("glca_block."))
        if in_block and len(shape) == 2:
            layer = name.removesuffix(".weight")
            expected[f"{layer}.parametrizations.weight.0.a"] = (RANK, shape[1])
            expected[f"{layer}.parametrizations.weight.0.b"] = (shape[0], RANK)
        elif not in_block and not is_frozen(name, "all"):
            expected[name] = shape
    assert {name: tuple(shape) for name, shape in trained.items()} == {n: tuple(s) for n, s in expected.items()}


def test_frozen_blocks_have_none():
    model = tiny_model()
    model.freeze(2)
    add_lora(model, RANK, in_glca=False)
    adapted = {name.split(".parametrizations")[0] for name, _ in model.named_parameters() if "parametrizations" in name}
    assert adapted and all(name.startswith("backbone.blocks.2.") for name in adapted)


def test_batch_norms_of_a_frozen_stem_keep_their_statistics():
    """A hybrid's stem is frozen, so its batch norms normalize by the statistics of the pretraining."""
    small = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = create_model("vit_small_resnet26d_224", 4, pretrained=False, ablation="sa_only", **small)
    add_lora(model, RANK, in_glca=False)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    model.train()(torch.randn(2, 3, 64, 64))
    assert len(before) > 20
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers() if "running" in name)


@pytest.mark.parametrize("rank", [-1, 0, 49])
def test_ranks_that_cannot_be(rank):
    with pytest.raises(InputError, match=f"lora_rank.*1 to 48.*{rank}"):
        add_lora(tiny_model(), rank, in_glca=False)


def test_compiled_blocks_are_those_without_compilation():
    model = with_lora()
    expected = outputs(model)
    model.compile_blocks(backend="eager")
    for name, value in outputs(model).items():
        torch.testing.assert_close(value, expected[name])


def test_a_state_without_lora_is_left_alone():
    state = tiny_model().state_dict()
    assert merge_lora(state) == state
