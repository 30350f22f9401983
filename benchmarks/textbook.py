"""DCAL as the paper's equations say it, word for word, and as it is often implemented: what savings are measured by.

Notable:
- attention is an explicit softmax, and the matrices of all blocks are kept;
- rollout is a product of these matrices, each tokens × tokens;
- the distractor is a third stream: its image runs through plain self-attention from the stem to the last block;
- nothing is shared between the streams but the weights.
"""

from collections.abc import Collection

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from dual_cross_attention.attention import sample_distractors, select_local
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT, DualOutput


class TextbookDCAL(nn.Module):
    """The same function of the same parameters as a model of `create_model(..., distractor_stream="sa")`.

    A task takes it in place of the model in training. Drop path and dropout draw other numbers; there is no gradient
    checkpointing.

    Args:
        dcal: a model with all branches, over a DeiT or ViT without normalized queries or gates. It is shared, not
            copied.

    Raises:
        ValueError: another ablation than "full".
    """

    def __init__(self, dcal: DualCrossAttentionViT):
        super().__init__()
        if dcal.ablation != "full":
            raise ValueError(f"the textbook has all three branches: expected ablation 'full', got '{dcal.ablation}'")
        self.dcal = dcal
        self.backbone, self.branches, self.has_pwca = dcal.backbone, dcal.branches, True
        self.distractor_noise = False

    def no_weight_decay(self) -> set[str]:
        """See `DualCrossAttentionViT.no_weight_decay`."""
        return {f"dcal.{name}" for name in self.dcal.no_weight_decay()}

    def forward(
        self,
        images: Tensor,
        distractors: Tensor | None = None,
        branches: Collection[str] | None = None,
        distractor_images: None = None,
    ) -> DualOutput:
        """See `DualCrossAttentionViT.forward`; always with all branches, and distractors of the batch."""
        if branches is not None and set(branches) != set(self.branches):
            raise ValueError(f"the textbook has all three branches: got {', '.join(branches)}")
        inputs = {"sa": images}
        if self.training:
            if distractors is None:
                distractors = sample_distractors(len(images), images.device)
            inputs |= {"pwca": images, "distractor": images[distractors]}
        streams, matrices = self._run_streams(inputs)

        vit, dcal, out = self.backbone, self.dcal, DualOutput()
        for branch in ("sa", "pwca") if self.training else ("sa",):
            normed = vit.norm(streams[branch])
            out.features[branch] = normed[:, 0]
            if dcal.has_necks:
                out.logits[branch] = dcal.sa_head(normed[:, 0], passing=branch == "pwca")
            else:
                out.logits[branch] = vit.forward_head(normed)
        out.rollout = roll_out(matrices)[:, 0, vit.num_prefix_tokens :]
        out.local = select_local(out.rollout, dcal.local_ratio)
        attended = cross_attend(dcal.glca_block.block, streams["sa"], out.local, vit.num_prefix_tokens)
        out.features["glca"] = dcal.glca_norm(attended)[:, 0]
        out.logits["glca"] = dcal.glca_head(vit.head_drop(out.features["glca"]))
        return out

    def _run_streams(self, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Stem and blocks of every stream: its last tokens (B, N, D); SA's weights of all blocks (B, heads, N, N)."""
        vit = self.backbone
        streams = {name: vit.norm_pre(vit._pos_embed(vit.patch_embed(own))) for name, own in inputs.items()}
        matrices = []
        for block in vit.blocks:
            heads = {name: project(block, block.norm1(tokens)) for name, tokens in streams.items()}
            if "pwca" in heads:  # K_c = [K₁; K₂], V_c = [V₁; V₂]
                query, *own = heads["pwca"]
                _, *other = heads["distractor"]
                heads["pwca"] = (query, *(torch.cat(pair, dim=2) for pair in zip(own, other, strict=True)))
            for name, (query, key, value) in heads.items():
                weights = attention_weights(query, key)
                streams[name] = finish(block, streams[name], weights @ value)
                if name == "sa":
                    matrices.append(weights.detach())
        return streams, matrices


def project(block: Block, normed: Tensor) -> tuple[Tensor, ...]:
    """(B, N, D) → query, key, value, each (B, heads, N, d)."""
    return tuple(split_heads(block, part) for part in block.attn.qkv(normed).chunk(3, dim=-1))


def split_heads(block: Block, projected: Tensor) -> Tensor:
    """(B, N, D) → (B, heads, N, d)"""
    return projected.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2)


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """softmax(QKᵀ/√d): (B, heads, n, d), (B, heads, N, d) → (B, heads, n, N)."""
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1)


def finish(block: Block, tokens: Tensor, attended: Tensor) -> Tensor:
    """What follows the attention in a block: (B, n, D), (B, heads, n, d) → (B, n, D)."""
    projected = block.attn.proj(attended.transpose(1, 2).flatten(2))
    tokens = tokens + block.drop_path1(block.ls1(projected))
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


def roll_out(matrices: list[Tensor]) -> Tensor:
    """Ŝ = S̄_L · … · S̄₂ · S̄₁, with S̄ₗ = 0.5·Sₗ + 0.5·E: L × (B, heads, N, N) → (B, N, N), float32."""
    rolled = identity = torch.eye(matrices[0].shape[-1], device=matrices[0].device)
    with torch.autocast(identity.device.type, enabled=False):
        for weights in matrices:
            rolled = (0.5 * weights.float().mean(1) + 0.5 * identity) @ rolled
    return rolled


def cross_attend(block: Block, tokens: Tensor, local: Tensor, num_prefix_tokens: int) -> Tensor:
    """GLCA, softmax(Qˡ Kᵍᵀ/√d) Vᵍ and the rest of its block: (B, N, D), (B, n) → (B, prefix + n, D)."""
    prefix = torch.arange(num_prefix_tokens, device=local.device).expand(len(local), -1)
    asking = torch.cat([prefix, local + num_prefix_tokens], dim=1).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    normed, dim = block.norm1(tokens), tokens.shape[-1]
    weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
    query = split_heads(block, F.linear(normed.gather(1, asking), weight[:dim], None if bias is None else bias[:dim]))
    key, value = (
        split_heads(block, part)
        for part in F.linear(normed, weight[dim:], None if bias is None else bias[dim:]).chunk(2, dim=-1)
    )
    return finish(block, tokens.gather(1, asking), attention_weights(query, key) @ value)
