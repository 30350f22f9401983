"""Layer-wise learning rate decay: the lower a layer of the backbone, the lower its learning rate.

Source: BEiT (arXiv 2106.08254); the layers are those of timm's `param_groups_layer_decay`.
"""

from timm.models import group_parameters

from dual_cross_attention.models.dual_vit import DualCrossAttentionViT


def layer_scales(model: DualCrossAttentionViT, layer_decay: float) -> dict[str, float]:
    """Factor on the learning rate of each parameter of the backbone's stem, blocks and norm, by its name in `model`.

    With L blocks, layer 0 is the stem (patch, position and class embedding), layer i the i-th block; the final norm is
    in the layer of the last block. Layer i has layer_decay^(L + 1 − i). Parameters that are missing here have 1: those
    that timm has in no layer (head, attention pool, learned frequencies of rotary positions), and those that are new
    (GLCA, necks, embeddings of cameras).
    """
    backbone = model.backbone
    layers = group_parameters(backbone, backbone.group_matcher(), reverse=True)
    of_last = {id(parameter) for parameter in model.family.blocks(backbone)[-1].parameters()}
    top = 1 + max(layers[name] for name, parameter in backbone.named_parameters() if id(parameter) in of_last)
    return {f"backbone.{name}": layer_decay ** (top - layer) for name, layer in layers.items() if layer < top}
