"""Each family against timm's own code, with layer scales, norms and biases of order 1."""

import pytest
import torch
from torch.testing import assert_close

from tests.backbones.oracles import (
    CAIT,
    CASES,
    assert_pwca_is_that_of_separate_passes,
    glca_rows,
    run_timm,
    weights,
)

BY_NAME = pytest.mark.parametrize("case", CASES, ids=str)
ALL_BY_NAME = pytest.mark.parametrize("case", [*CASES, *CAIT], ids=str)
COMPILED = ("vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_ape_224", "vit_base_patch16_siglip_224")


@ALL_BY_NAME
def test_sa_is_timms_own_forward(case):
    """At the size of the weights, another one, and a rectangle."""
    for size in range(3):
        model = case.create(size, ablation="sa_only").eval()
        images, reference = case.images(size, 2), case.reference(model, size)
        with torch.no_grad():
            out, tokens = model(images), reference.forward_features(images)
            feature = reference.forward_head(tokens, pre_logits=True)
            assert feature.abs().mean() > 0.1
            assert_close(out.features["sa"], feature)
            assert_close(out.logits["sa"], reference(images))


@BY_NAME
def test_rollout_is_the_explicit_product(case, monkeypatch):
    """Of timm's own queries and keys, after norms and rotation; the row starts in the class token or the pool."""
    model = case.create(ablation="sa_glca").eval()
    reference, images = case.reference(model), case.images()
    with torch.no_grad():
        out = model(images)
        _, layers = run_timm(monkeypatch, lambda: reference(images))
    prefix, pool = reference.num_prefix_tokens, None
    if reference.global_pool == "map":
        pool = weights(*layers.pop()).mean(1)[:, 0]
    product = torch.eye(layers[0][0].shape[2], dtype=torch.float64)
    for query, key in layers:
        heads = query.shape[1] // key.shape[1]
        shared = key.repeat_interleave(heads, dim=1)
        product = (0.5 * weights(query, shared).mean(1) + 0.5 * torch.eye(product.shape[-1])) @ product
    start = product.new_zeros(len(images), product.shape[-1])
    if reference.global_pool == "token":
        start[:, 0] = 1
    elif pool is None:
        start[:, prefix:] = 1 / (product.shape[-1] - prefix)
    else:
        start[:, -pool.shape[1] :] = pool
    expected = (start[:, None] @ product)[:, 0, prefix:]
    assert expected.std() > 1e-4
    assert_close(out.rollout, expected.float(), atol=1e-6, rtol=0)
    assert torch.equal(out.local, out.rollout.topk(out.local.shape[1]).indices)


@BY_NAME
@pytest.mark.parametrize("checkpointing", [False, True])
def test_pwca_and_gradients_are_those_of_separate_passes(case, checkpointing, monkeypatch):
    """PWCA is timm's own forward with a written-out joint softmax over the keys of the image and its distractor."""
    assert_pwca_is_that_of_separate_passes(case, checkpointing, run_timm, monkeypatch)


@BY_NAME
@pytest.mark.parametrize("number", [1, 2])
def test_glca_is_timms_block_at_the_local_tokens(case, number):
    """With the positions of the backbone's last blocks, then the norm, or the pool, of GLCA's own."""
    model = case.create(ablation="sa_glca", glca_blocks=number).eval()
    reference, images = case.reference(model), case.images()
    with torch.no_grad():
        out = model(images)
        stem = reference._pos_embed(reference.patch_embed(images))
        tokens, table = stem if isinstance(stem, tuple) else (stem, None)
        tokens = reference.norm_pre(tokens)

        def run(block, place, tokens):
            if table is None:
                return block(tokens)
            return block(tokens, rope=table[place] if table.ndim == 4 else table)

        for place, block in enumerate(reference.blocks):
            tokens = run(block, place, tokens)
        prefix, first = reference.num_prefix_tokens, len(reference.blocks) - number
        rows = glca_rows(model, tokens, out.local, lambda block, place, tokens: run(block, first + place, tokens))
        rows = model.glca_norm(rows)
        if reference.global_pool == "token":
            expected = rows[:, 0]
        elif reference.global_pool == "avg":
            expected = model.glca_pool.fc_norm(rows[:, prefix:].mean(1))
        else:
            skips = prefix if hasattr(reference, "pool_include_prefix") else 0  # timm's Eva pools all tokens
            expected = model.glca_pool.attn_pool(rows[:, skips:])
        assert_close(out.features["glca"], expected)
        if len(model.glca_blocks) > 1 or reference.global_pool != "token":
            assert_close(model.embed(images, branch="glca"), expected)


@ALL_BY_NAME
def test_glca_starts_as_a_copy_or_with_weights_of_its_own(case):
    """At random, nothing of the trained block, norm or pool is left but the constants that timm starts with."""
    torch.manual_seed(0)
    fresh = case.create(glca_init="random", ablation="sa_glca")
    model = type(fresh)(fresh.backbone, "sa_glca", glca_init="last_block")
    source = {"glca_block.block.": "blocks.1." if len(fresh.backbone.blocks) == 2 else "blocks.2."}
    source |= {"glca_norm.": "norm.", "glca_pool.": ""}
    own = [name for name, _ in model.named_parameters() if name.startswith(tuple(source))]
    random = type(fresh)(fresh.backbone, "sa_glca", glca_init="random")
    for name in own:
        prefix = next(each for each in source if name.startswith(each))
        original = fresh.backbone.get_parameter(source[prefix] + name.removeprefix(prefix))
        assert torch.equal(model.get_parameter(name), original) and model.get_parameter(name) is not original
        assert not torch.equal(random.get_parameter(name), original), name


@pytest.mark.parametrize("case", [case for case in CASES if case.name in COMPILED], ids=str)
def test_compiled_blocks_give_the_same(case):
    model = case.create().train()
    images, distractors = case.images(), torch.tensor([2, 0, 1])
    torch.manual_seed(3)
    expected = model(images, distractors)
    torch._dynamo.reset()
    model.compile_blocks("eager")
    torch.manual_seed(3)
    out = model(images, distractors)
    for branch, logits in expected.logits.items():
        assert_close(out.logits[branch], logits)
