"""The inference graph that is exported: normalized pixels in, all answers of the exported branches out."""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from dual_cross_attention.inference.model_files import SavedModel
from dual_cross_attention.inference.onnx_model import output_names

EXAMPLE_BATCH = 3
"""Of the example that is traced. 0 and 1 would be taken for constants."""


class InferenceGraph(nn.Module):
    """A saved model as one function of images; its outputs are those of `output_names`, as a tuple.

    Args:
        saved: in evaluation mode, float32.
        branches: the exported ones, of `saved.model.test_branches`, "sa" first.
    """

    def __init__(self, saved: SavedModel, branches: list[str]):
        super().__init__()
        self.model, self.branches, self.task = saved.model, branches, saved.config.task
        self.after_neck = getattr(saved.config, "feature", "before_neck") == "after_neck"
        self.normalize = getattr(saved.config, "normalize_features", True)
        self.output_names = output_names(self.task, branches, "glca" in branches)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float32, normalized."""
        out = self.model(images, branches=["sa", *(branch for branch in self.branches if branch != "sa")])
        features = {branch: out.features[branch] for branch in self.branches}
        if self.after_neck:
            features = self.model.through_necks(features)
        embedding = torch.cat([*features.values()], dim=1)
        named = {
            "embedding": F.normalize(embedding, dim=1) if self.normalize else embedding,
            **{f"feature_{branch}": feature for branch, feature in features.items()},
            "rollout": out.rollout,
            "local": out.local,
        }
        if self.task == "fgvc":
            logits = [out.logits[branch] for branch in self.branches]
            named["probabilities"] = torch.stack([each.softmax(dim=-1) for each in logits]).mean(0)
            named |= {f"logits_{branch}": each for branch, each in zip(self.branches, logits, strict=True)}
        return tuple(named[name] for name in self.output_names)


@torch.no_grad()
def trace_graph(graph: InferenceGraph, img_size: tuple[int, int]) -> ExportedProgram:
    """Traces a graph with a symbolic batch size, "batch", from 1.

    `torch.onnx.export` of the module itself would succeed with a graph for the batch size of the example alone.

    Args:
        graph: on CPU.
        img_size: (height, width) in pixels.

    Raises:
        ValueError, RuntimeError: of torch.export, where the model fixes the batch size or cannot be traced.
    """
    images = torch.zeros(EXAMPLE_BATCH, 3, *img_size)
    graph.eval()(images)  # raises what eager raises; constants that do not depend on images are made before the tracing
    return torch.export.export(graph, (images,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False)
