"""The dual model: against timm's own forward, against separate passes, and what autograd keeps."""

import copy
import shutil

import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch.nn import functional as F

from benchmarks.measure import count_flops
from dual_cross_attention import InputError, create_model
from dual_cross_attention.attention import attention_rollout, select_local
from dual_cross_attention.backbones.drop_path import DropPathMasks, sample_drop_path
from dual_cross_attention.backbones.plain_vit import PlainViT
from dual_cross_attention.models import ABLATIONS
from dual_cross_attention.models.stacked_block import last_block, stacked_block
from tests.helpers import TINY_VIT, random_images, tiny_model


def flops(function):
    with torch.no_grad():
        return count_flops(function)


def relocate(model, scale=6.0):
    """Sharper attention than a fresh model has, so that tests of attention test something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.weight"):
                parameter.mul_(scale)
    return model


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(
    "backbone",
    [
        "deit_tiny_patch16_224",
        "vit_small_patch32_224",
        "deit_tiny_distilled_patch16_224",
        "vit_small_patch14_reg4_dinov2",
    ],
)
def test_sa_is_timms_own_forward(backbone, ablation):
    torch.manual_seed(0)
    size = (84, 112) if "patch14" in backbone else (64, 96)
    model = relocate(create_model(backbone, 7, img_size=size, ablation=ablation)).eval()
    reference = timm.create_model(backbone, num_classes=7, img_size=size).eval()
    reference.load_state_dict(model.backbone.state_dict())  # original names, strict
    inputs = random_images(2, size)
    with torch.no_grad():
        out = model(inputs)
        tokens = reference.forward_features(inputs)
        torch.testing.assert_close(out.features["sa"], tokens[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.logits["sa"], reference.forward_head(tokens), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.logits["sa"], reference(inputs), atol=1e-5, rtol=1e-5)


def test_sa_only_is_timms_model_and_nothing_more():
    model = tiny_model("sa_only").train()
    assert all(name.startswith("backbone.") for name, _ in model.named_parameters())
    out = model(random_images(3))
    assert set(out.logits) == {"sa"} and out.rollout is None and out.local is None
    torch.testing.assert_close(out.logits["sa"], model.backbone(random_images(3)))


@pytest.mark.parametrize(
    ("ablation", "in_training", "in_evaluation"),
    [
        ("sa_only", {"sa"}, {"sa"}),
        ("sa_glca", {"sa", "glca"}, {"sa", "glca"}),
        ("sa_pwca", {"sa", "pwca"}, {"sa"}),
        ("full", {"sa", "glca", "pwca"}, {"sa", "glca"}),
    ],
)
def test_branches_of_each_ablation(ablation, in_training, in_evaluation):
    model = tiny_model(ablation)
    assert set(model.train()(random_images(3)).logits) == in_training == set(model.branches)
    out = model.eval()(random_images(1))  # one image is enough without PWCA
    assert set(out.logits) == set(out.features) == in_evaluation
    assert out.features["sa"].shape == (1, 48) and out.logits["sa"].shape == (1, 5)


def test_rollout_and_local_are_those_of_the_backbones_queries_and_keys():
    model = relocate(tiny_model("sa_glca", local_ratio=0.25)).eval()
    queries, keys = [], []

    def keep(attention, inputs, _):
        qkv = attention.qkv(inputs[0]).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
        queries.append(qkv[0])
        keys.append(qkv[1])

    hooked = copy.deepcopy(model.backbone)
    for block in hooked.blocks:
        block.attn.register_forward_hook(keep)
    hooked(random_images(3))
    out = model(random_images(3))
    expected = attention_rollout(queries, keys)
    torch.testing.assert_close(out.rollout, expected[:, 1:])
    assert torch.equal(out.local, select_local(expected[:, 1:], 0.25))
    assert out.local.shape == (3, 6)


def test_glca_reads_the_tokens_before_the_final_norm_and_gives_its_class_token():
    model = relocate(tiny_model("sa_glca")).eval()
    out = model(random_images(3))
    tokens = model.backbone.blocks(model.backbone._pos_embed(model.backbone.patch_embed(random_images(3))))
    expected = model.glca_norm(model.glca_block(tokens, out.local))[:, 0]
    torch.testing.assert_close(out.features["glca"], expected)
    torch.testing.assert_close(out.logits["glca"], F.linear(expected, model.glca_head.weight, model.glca_head.bias))


class Separate(torch.nn.Module):
    """SA and PWCA as two plain passes, with explicit attention: what the stacked pass must equal."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs, distractors):
        vit = self.model.backbone
        streams = {"sa": vit._pos_embed(vit.patch_embed(inputs))}
        streams["pwca"] = streams["sa"]
        for block in vit.blocks:
            before = {}
            for name, tokens in streams.items():
                qkv = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, block.attn.num_heads, -1))
                before[name] = qkv.permute(2, 0, 3, 1, 4)
            other = before["sa" if self.model.clean_distractors else "pwca"]
            for name, (query, key, value) in before.items():
                if name == "pwca":
                    key = torch.cat([key, other[1][distractors]], dim=2)
                    value = torch.cat([value, other[2][distractors]], dim=2)
                weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
                merged = (weights @ value).transpose(1, 2).flatten(2)
                tokens = streams[name] + block.attn.proj(merged)
                streams[name] = tokens + block.mlp(block.norm2(tokens))
        return {name: vit.head(vit.norm(tokens)[:, 0]) for name, tokens in streams.items()}


@pytest.mark.parametrize("stream", ["pwca", "sa"])
def test_stacked_pass_has_the_outputs_and_gradients_of_separate_passes(stream):
    model = relocate(tiny_model("sa_pwca", distractor_stream=stream), 3.0).double().train()
    inputs, distractors = random_images(4).double(), torch.tensor([2, 0, 3, 1])
    labels = torch.tensor([0, 1, 2, 3])

    def gradients(logits):
        loss = F.cross_entropy(logits["sa"], labels) + 0.7 * F.cross_entropy(logits["pwca"], labels)
        model.zero_grad()
        loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    stacked = model(inputs, distractors).logits
    separate = Separate(model)(inputs, distractors)
    for branch in ("sa", "pwca"):
        torch.testing.assert_close(stacked[branch], separate[branch])
    assert (stacked["sa"] - stacked["pwca"]).abs().max() > 1e-3
    ours, theirs = gradients(stacked), gradients(separate)
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], atol=1e-10, rtol=1e-7, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_the_distractors_are_drawn_anew_and_follow_the_seed():
    model = tiny_model("sa_pwca").train()

    def pwca(seed):
        torch.manual_seed(seed)
        return model(random_images(6)).logits["pwca"]

    assert torch.equal(pwca(0), pwca(0))
    assert not torch.equal(pwca(0), pwca(1))


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_autograd_keeps_nothing_of_tokens_by_tokens(ablation, checkpointing):
    """With 257 tokens no other size comes near: whatever has N·N entries a head would be an attention matrix."""
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", 5, img_size=128, ablation=ablation, **TINY_VIT).train()
    model.set_grad_checkpointing(checkpointing)
    tokens, saved = 257, []

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(random_images(2, (128, 128)))
        sum(logits.sum() for logits in out.logits.values()).backward()
    assert saved
    square = [shape for shape in saved if sum(side >= tokens - 1 for side in shape) >= 2]
    assert not square, square


@pytest.mark.parametrize("ablation", ["sa_glca", "full"])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
def test_checkpointing_changes_no_gradient(ablation, drop_path_rate):
    gradients = []
    for checkpointing in (False, True):
        model = relocate(tiny_model(ablation, drop_path_rate=drop_path_rate), 3.0).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(3)
        out = model(random_images(4))
        sum(logits.square().sum() for logits in out.logits.values()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-5)


def test_every_block_has_its_stochastic_depth(monkeypatch):
    """Where all residual branches are dropped, tokens leave as they came: the backbone's blocks and GLCA's."""
    monkeypatch.setattr("torch.Tensor.bernoulli_", lambda tensor, *_: tensor.zero_())
    model = tiny_model("full", drop_path_rate=0.5).train()
    blocks = []
    for block in model.backbone.blocks:
        blocks.append(sample_drop_path(block, 4, torch.device("cpu")))
    assert blocks[0] is None and all((mask == 0).all() for masks in blocks[1:] for mask in masks)

    seen = {}
    model.glca_block.register_forward_hook(lambda _, given, out: seen.update(tokens=given[0], out=out))
    local = model(random_images(4)).local
    gathered = seen["tokens"].gather(1, (local + 1).unsqueeze(-1).expand(-1, -1, 48))
    torch.testing.assert_close(seen["out"], torch.cat([seen["tokens"][:, :1], gathered], dim=1), atol=0, rtol=0)

    one_block = Block(dim=48, num_heads=3)
    tokens, nothing = torch.randn(4, 6, 48), DropPathMasks(torch.zeros(4, 1, 1), torch.zeros(4, 1, 1))
    assert torch.equal(stacked_block(one_block, PlainViT(), tokens, None, None, nothing)[0], tokens)
    sa, pwca, *_ = last_block(one_block, PlainViT(), tokens, None, torch.tensor([1, 0]), nothing)
    assert torch.equal(sa, tokens[:2]) and torch.equal(pwca, tokens[2:, :1])


@pytest.mark.parametrize("mode", ["checkpointing", "no_grad"])
def test_rollout_holds_queries_and_keys_of_sa_and_nothing_else(mode, monkeypatch):
    """A view of the fused projection would keep Q, K and V of both streams alive, in every layer."""
    kept = []

    def watch(queries, keys, **options):
        kept.extend([*queries, *keys])
        return attention_rollout(queries, keys, **options)

    monkeypatch.setattr("dual_cross_attention.models.glca.attention_rollout", watch)
    model = tiny_model("full").train()
    model.set_grad_checkpointing(mode == "checkpointing")
    with torch.set_grad_enabled(mode == "checkpointing"):
        model(random_images(4))
    assert len(kept) == 6
    assert all(tensor.untyped_storage().nbytes() == tensor.numel() * 4 for tensor in kept)


def test_rollout_gives_no_gradient_to_the_backbone():
    """GLCA's loss reaches the backbone through its tokens only; the choice of the local ones is no path."""
    model = relocate(tiny_model("sa_glca")).train()
    out = model(random_images(3))
    assert not out.rollout.requires_grad and not out.local.requires_grad
    assert out.rollout.dtype == torch.float32
    out.logits["glca"].sum().backward()
    assert model.backbone.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert model.backbone.norm.weight.grad is None  # SA's own norm is not GLCA's


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rollout_stays_float32_under_autocast(dtype):
    model = relocate(tiny_model("full")).train()
    with torch.autocast("cpu", dtype):
        out = model(random_images(3))
    assert out.rollout.dtype == torch.float32
    assert out.logits["sa"].dtype == dtype
    total = out.rollout.sum(-1)
    assert ((total > 0) & (total <= 1 + 1e-5)).all()  # what is missing to 1 is on the prefix


def test_odd_batch_works_and_a_batch_of_one_is_refused_in_training_with_pwca():
    assert tiny_model("full").train()(random_images(3)).logits["pwca"].shape == (3, 5)
    for ablation in ("full", "sa_pwca"):
        with pytest.raises(InputError, match="batch_size >= 2"):
            tiny_model(ablation).train()(random_images(1))
    assert tiny_model("sa_glca").train()(random_images(1)).logits["glca"].shape == (1, 5)


def test_parameters_and_flops_of_glca_are_the_papers():
    """DeiT-Tiny at 448 x 448 on CUB: +9 % parameters and +2 % FLOPs in the paper's table."""
    full, plain = (
        create_model("deit_tiny_patch16_224", 200, img_size=448, ablation=ablation).eval()
        for ablation in ("sa_glca", "sa_only")
    )
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (full, plain)]
    assert 0.08 <= counts[0] / counts[1] - 1 <= 0.095

    inputs, tokens = torch.randn(1, 3, 448, 448), torch.randn(1, 785, 192)
    local = torch.arange(78).unsqueeze(0)
    glca = flops(lambda: full.glca_head(full.glca_norm(full.glca_block(tokens, local))[:, 0]))
    assert 0.01 <= glca / flops(lambda: plain.backbone(inputs)) <= 0.025


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_unused_tokens_are_not_computed(ablation):
    """FLOPs of a training pass, against a count by hand of what each branch needs."""
    model = create_model("vit_tiny_patch16_224", 5, img_size=128, ablation=ablation, **TINY_VIT).train()
    batch, tokens, dim, depth = 2, 257, 48, 3
    linear, qkv = 12 * dim * dim * tokens, 3 * dim * dim * tokens  # multiplications of a block's linear layers
    attention = 2 * tokens * tokens * dim
    sa_last = dim * dim * (2 * tokens + 10) + 2 * tokens * dim  # key and value of all; the rest of CLS alone
    expected = (depth - 1) * (linear + attention) + (linear + attention if model.has_glca else sa_last)
    if model.has_pwca:
        expected += (depth - 1) * (linear + 2 * attention) - qkv + sa_last + 2 * tokens * dim
    if model.has_glca:
        local = 1 + round(0.1 * 256)
        expected += dim * dim * (2 * tokens + 10 * local) + 2 * local * tokens * dim  # the block
        expected += (depth - 1) * tokens * tokens * dim + tokens * dim  # rollout's scores; the last layer's are one row
        expected += ((depth - 1) * 3 * tokens + 3) * tokens  # its vector times the attention of each head
    expected += dim * 3 * 8 * 8 * 256 + len(model.branches) * 5 * dim  # stem and heads
    counted = flops(lambda: model(random_images(batch, (128, 128)))) / (2 * batch)
    assert counted == pytest.approx(expected, rel=2e-3)


def test_sa_alone_costs_less_than_timms_forward():
    model = create_model("deit_tiny_patch16_224", 200, img_size=448).eval()
    inputs = torch.randn(1, 3, 448, 448)
    assert flops(lambda: model.predict(inputs, branch="sa")) < 0.94 * flops(lambda: model.backbone(inputs))


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_change_nothing_and_are_compiled_once(ablation, checkpointing):
    """Outputs and gradients, with drop path, of two batch sizes; after one epoch of both, nothing is compiled again."""
    model = relocate(tiny_model(ablation, drop_path_rate=0.4), 3.0).train()
    model.set_grad_checkpointing(checkpointing)

    def epoch():
        seen = []
        for batch in (4, 4, 3):
            torch.manual_seed(3)
            model.train().zero_grad()
            out = model(random_images(batch))
            sum(logits.square().sum() for logits in out.logits.values()).backward()
            seen += [*out.logits.values(), *(parameter.grad.clone() for parameter in model.parameters())]
        for batch in (3, 1):
            seen.append(model.eval().predict(random_images(batch)))
            seen.append(model.predict(random_images(batch), branch="sa"))
        return seen

    torch.compiler.reset()
    plain = epoch()
    model.compile_blocks(backend="aot_eager")
    for ours, expected in zip(epoch(), plain, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        epoch()


def test_blocks_that_differ_in_their_drop_rate_share_a_graph():
    torch.compiler.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    model = tiny_model("full", depth=6, drop_path_rate=0.5).train()
    model.compile_blocks(backend=count)
    model(random_images(3))
    assert len(graphs) == 4  # the first block has no drop path; the four after it; the last; GLCA's


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_inductor_compiles_the_blocks():
    torch.compiler.reset()
    model = relocate(tiny_model("full", drop_path_rate=0.4), 3.0).train()

    def gradients():
        torch.manual_seed(3)
        model.zero_grad()
        sum(logits.square().sum() for logits in model(random_images(4)).logits.values()).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.compile_blocks()
    torch.testing.assert_close(gradients(), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("ablation", ["sa_pwca", "full"])
def test_queries_and_keys_are_kept_for_rollout_only(ablation, checkpointing, monkeypatch):
    """Copied once a layer where a view would hold more, not again when a block is recomputed; without GLCA, never."""

    class Counted(torch.Tensor):
        """Counts the copies that are made of it."""

        clones = 0

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            cls.clones += function is torch.Tensor.clone
            return super().__torch_function__(function, types, args, kwargs)

    def counted(run_block, place):
        """Query and key are outputs `place` and the one after it."""

        def run(*arguments):
            out = list(run_block(*arguments))
            out[place : place + 2] = [each.as_subclass(Counted) for each in out[place : place + 2]]
            return tuple(out)

        return run

    monkeypatch.setattr("dual_cross_attention.models.dual_vit.stacked_block", counted(stacked_block, 1))
    monkeypatch.setattr("dual_cross_attention.models.dual_vit.last_block", counted(last_block, 2))
    model = tiny_model(ablation).train()
    model.set_grad_checkpointing(checkpointing)
    sum(logits.sum() for logits in model(random_images(4)).logits.values()).backward()
    assert Counted.clones == (2 * 3 if ablation == "full" and checkpointing else 0)


def test_predict_and_embed():
    model = tiny_model("full").eval()
    out = model(random_images(3))
    sa, glca = (out.logits[branch].softmax(-1) for branch in ("sa", "glca"))
    torch.testing.assert_close(model.predict(random_images(3)), (sa + glca) / 2)
    torch.testing.assert_close(model.predict(random_images(3), branch="sa"), sa)
    torch.testing.assert_close(model.predict(random_images(3), branch="glca"), glca)
    torch.testing.assert_close(model.embed(random_images(3)), torch.cat([out.features["sa"], out.features["glca"]], 1))
    torch.testing.assert_close(model.embed(random_images(3), branch="glca"), out.features["glca"])
    assert not model.predict(random_images(3)).requires_grad
    plain = tiny_model("sa_only").eval()
    torch.testing.assert_close(plain.predict(random_images(3)), plain.predict(random_images(3), branch="sa"))
    for branch in ("glca", "pwca", "nope"):
        with pytest.raises(InputError, match="no branch"):
            plain.predict(random_images(3), branch=branch)
    with pytest.raises(InputError, match=r"model\.eval"):
        model.train().predict(random_images(3))


def test_glca_starts_at_random_or_as_the_last_block():
    copied, fresh = tiny_model(glca_init="last_block"), tiny_model(glca_init="random")
    for name, parameter in copied.glca_block.block.named_parameters():
        assert torch.equal(parameter, copied.backbone.blocks[-1].get_parameter(name))
        assert parameter is not copied.backbone.blocks[-1].get_parameter(name)
    last = fresh.backbone.blocks[-1]
    assert not torch.equal(fresh.glca_block.block.attn.qkv.weight, last.attn.qkv.weight)
    assert fresh.glca_block.block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(fresh.glca_head.weight, fresh.backbone.head.weight)


def test_state_dict_goes_back_to_timm_with_original_names(tmp_path):
    from safetensors.torch import load_file, save_file

    model = create_model("deit_tiny_patch16_224", 7, img_size=64)
    save_file(model.backbone.state_dict(), tmp_path / "backbone.safetensors")
    reference = timm.create_model("deit_tiny_patch16_224", num_classes=7, img_size=64)
    reference.load_state_dict(load_file(tmp_path / "backbone.safetensors"), strict=True)
    again = create_model("deit_tiny_patch16_224", 7, img_size=64, pretrained=str(tmp_path / "backbone.safetensors"))
    for name, value in reference.state_dict().items():
        assert torch.equal(value, again.backbone.state_dict()[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "deit_tiny_patch16"}, "did you mean deit_tiny_patch16_224"),
        ({"backbone": "resnet50"}, "none of the families"),
        ({"backbone": "deit_tiny_patch16_224", "global_pool": "avgmax"}, "no class token, mean"),
        ({"backbone": "vit_tiny_patch16_224", "global_pool": "avg", "local_queries": "cross"}, "class token"),
        ({"backbone": "deit_tiny_patch16_224", "img_size": 100}, "take 96x96 or 112x112"),
        ({"backbone": "deit_tiny_patch16_224", "img_size": (64, 60)}, "64x60 is not a multiple"),
        ({"backbone": "deit_tiny_patch16_224", "patch_drop_rate": 0.2}, "patch_drop_rate"),
        ({"backbone": "vit_base_patch16_xp_224", "depth": 1}, "ParallelScalingBlock"),
        ({"backbone": "deit_tiny_patch16_224", "nonsense": 1}, "nonsense"),
        ({"backbone": "deit_tiny_patch16_224", "ablation": "glca"}, "there are full, sa_only, sa_glca, sa_pwca"),
        ({"backbone": "deit_tiny_patch16_224", "num_classes": 1}, "at least two classes"),
        ({"backbone": "deit_tiny_patch16_224", "local_ratio": 0}, "local_ratio"),
        ({"backbone": "deit_tiny_patch16_224", "task": "nope"}, "there is fgvc"),
        ({"backbone": "deit_tiny_patch16_224", "glca_init": "nope"}, "random, last_block"),
    ],
)
def test_what_cannot_work_is_refused_and_says_what_can(arguments, message):
    with pytest.raises(InputError, match=message):
        create_model(**{"num_classes": 5, "img_size": 64, **arguments})
