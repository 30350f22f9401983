"""A DCAL model's branches, and the model at inference: probabilities, features, and a trace of its attention."""

from abc import abstractmethod
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dual_cross_attention.attention.global_local import GlobalLocalBlock
from dual_cross_attention.backbones.family import BackboneFamily
from dual_cross_attention.backbones.readout import Pool, ReadOut
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.attention_trace import AttentionTrace, DualOutput
from dual_cross_attention.models.glca import LocalQueries
from dual_cross_attention.models.inputs import check_images
from dual_cross_attention.models.neck import NeckClassifier


class BranchInference(nn.Module):
    """The branches of `DualCrossAttentionViT` by name, and its `predict`, `embed` and `trace`."""

    backbone: Any  # a timm model of one of the families
    family: BackboneFamily
    read_out: ReadOut
    ablation: str
    local_queries: LocalQueries
    has_glca: bool
    has_pwca: bool
    glca_is_trained: bool
    has_necks: bool
    sa_head: NeckClassifier
    glca_block: GlobalLocalBlock
    glca_pool: Pool | None
    glca_head: nn.Module

    @property
    def branches(self) -> list[str]:
        """The branches with a loss in training, "sa" first."""
        return ["sa", *(["glca"] if self.has_glca else []), *(["pwca"] if self.has_pwca else [])]

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patch tokens in the backbone's blocks."""
        return self.family.num_prefix_tokens(self.backbone)

    @property
    def embed_dim(self) -> int:
        """D, the width of a branch's feature."""
        return self.backbone.embed_dim

    @property
    def num_classes(self) -> int:
        """Width of the logits: classes, or training identities."""
        return self.sa_head.classifier.out_features if self.has_necks else self.backbone.num_classes

    @property
    def test_branches(self) -> list[str]:
        """The branches that the model has at inference, "sa" first: all but PWCA."""
        return [branch for branch in self.branches if branch != "pwca"]

    @property
    def glca_blocks(self) -> list[GlobalLocalBlock]:
        """GLCA's blocks in their order; none without GLCA."""
        return [self.glca_block, *getattr(self, "more_glca_blocks", [])] if self.has_glca else []

    @property
    def predicting_branches(self) -> list[str]:
        """The branches that predict together at inference, "sa" first."""
        return ["sa", *(["glca"] if self.has_glca and self.glca_is_trained else [])]

    @abstractmethod
    def _forward(
        self,
        images: Tensor,
        distractors: Tensor | None,
        with_glca: bool,
        choose_local: bool = True,
        distractor_images: Tensor | None = None,
        trace: AttentionTrace | None = None,
        cameras: Tensor | None = None,
    ) -> DualOutput:
        """One forward pass, see `DualCrossAttentionViT`."""

    @torch.no_grad()
    def predict(self, images: Tensor, branch: Literal["sa", "glca"] | None = None) -> Tensor:
        """Class probabilities, (B, num_classes): the mean of SA's and GLCA's softmax, or those of one branch.

        The paper adds the two softmaxes (section 4.1); their mean ranks alike and is a distribution. A model that was
        saved before GLCA's training started predicts with SA alone.

        Args:
            images: (B, 3, H, W) normalized, of the model's size, dtype and device; B = 0 gives (0, num_classes).

        Raises:
            InputError: a model in training mode or for re-identification, a branch that it does not have, or images
                that `check_images` refuses.
        """
        logits = self.predict_logits(images, branch).values()
        return torch.stack([F.softmax(each, dim=-1) for each in logits]).mean(0)

    @torch.no_grad()
    def predict_logits(self, images: Tensor, branch: Literal["sa", "glca"] | None = None) -> dict[str, Tensor]:
        """The logits that `predict` makes probabilities of, (B, num_classes) float32 by branch; raises as it does."""
        if self.has_necks:
            raise InputError("a re-identification model knows its training identities only: use embed, not predict")
        out = self._infer(images, branch)
        return {name: out.logits[name].float() for name in ([branch] if branch else self.predicting_branches)}

    @torch.no_grad()
    def embed(self, images: Tensor, branch: Literal["sa", "glca"] | None = None, after_neck: bool = False) -> Tensor:
        """Image features, (B, 2D): those of SA and GLCA concatenated, or (B, D) of one branch.

        A model without GLCA, or one that was saved before GLCA's training started, gives SA's (B, D).

        Args:
            images: (B, 3, H, W) normalized, of the model's size, dtype and device; B = 0 gives (0, 2D).
            after_neck: the features that the classifiers see, of a re-identification model.

        Raises:
            InputError: a model in training mode, a branch that it does not have, a neck where there is none, or images
                that `check_images` refuses.
        """
        features = self._infer(images, branch).features
        chosen = [branch] if branch else self.predicting_branches
        if after_neck:
            features = self.through_necks(features)
        return torch.cat([features[name] for name in chosen], dim=-1)

    def through_necks(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features of "sa" and "glca", (B, D) each, as their classifiers see them at inference.

        Raises:
            InputError: the model has no necks, since it is not for re-identification.
        """
        if not self.has_necks:
            raise InputError("only a model for task 'reid' has necks: there is no feature after them")
        heads = {"sa": self.sa_head, **({"glca": self.glca_head} if self.has_glca else {})}
        return {name: cast(NeckClassifier, heads[name]).neck(feature) for name, feature in features.items()}

    def _check_inference(self, images: Tensor) -> None:
        if self.training:
            raise InputError("the model is in training mode: call model.eval() before predict or embed")
        check_images(self.backbone, images, self.family.patch_size(self.backbone))

    def _infer(self, images: Tensor, branch: str | None) -> DualOutput:
        if branch not in (None, *self.branches) or branch == "pwca":
            has = " and ".join(f"'{name}'" for name in self.test_branches)
            raise InputError(f"no branch '{branch}' at inference with ablation {self.ablation}: there is {has}")
        self._check_inference(images)
        if not images.shape[0]:
            return self._empty(images)
        with_glca = branch == "glca" or (branch is None and "glca" in self.predicting_branches)
        return self._forward(images, None, with_glca, self._local_tokens_matter)

    @property
    def _local_tokens_matter(self) -> bool:
        """Whether GLCA's feature depends on which patch tokens are local.

        A class token attends to all tokens in one block, and tokens with a query do not see each other: neither the
        rollout nor the local tokens are computed for predictions and features alone. GLCA's pool reads local tokens.
        """
        of_class_token = len(self.glca_blocks) == 1 and self.local_queries not in ("local_only", "cross")
        return self.read_out.reads_patches or not of_class_token

    def _empty(self, images: Tensor) -> DualOutput:
        """Logits (0, num_classes) and features (0, D) of every branch of inference, for an empty batch."""
        names = self.test_branches
        logits, features = ({n: images.new_zeros(0, w) for n in names} for w in (self.num_classes, self.embed_dim))
        return DualOutput(logits, features)

    @torch.no_grad()
    def trace(self, images: Tensor, patch_tokens: bool = False) -> AttentionTrace:
        """One forward pass at inference that keeps the queries and keys of all layers, for explanations.

        Args:
            images: (B, 3, H, W) normalized, of the model's size, dtype and device; B at least 1.
            patch_tokens: keep SA's patch tokens after the last block, also where no branch reads them.

        Raises:
            InputError: a model in training mode, an empty batch, or images that `check_images` refuses.
        """
        self._check_inference(images)
        if not images.shape[0]:
            raise InputError("expected at least one image, got an empty batch")
        with_glca = "glca" in self.predicting_branches
        trace = AttentionTrace(with_patch_tokens=patch_tokens)
        trace.output = self._forward(images, None, with_glca, trace=trace)
        return trace
