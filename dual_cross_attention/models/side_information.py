"""Side information embedding (SIE) of TransReID (arXiv 2102.04378, section 3.3): a learned vector per camera.

Notable:
- tokens + λ · embedding of the image's camera, for all tokens of the image, before the first block;
- views, and pairs of camera and view, are numbered as cameras are, and read "camera" here;
- an image of an unknown camera gets nothing added. Training drops cameras at random, so that the model has seen such
  images. TransReID has no unknown cameras: each test image must be of a camera of the training.
"""

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

UNKNOWN = -1
"""Index of an unknown camera."""


class SideInformation(nn.Module):
    """Adds the embedding of each image's camera to its tokens.

    Args:
        count: number of cameras.
        width: D of the tokens.
        scale: λ, the factor of the embedding; 3.0 in TransReID.
    """

    def __init__(self, count: int, width: int, scale: float):
        super().__init__()
        self.scale = scale
        self.embedding = nn.Parameter(torch.zeros(count, width))
        trunc_normal_(self.embedding, std=0.02)

    def forward(self, tokens: Tensor, cameras: Tensor) -> Tensor:
        """(B, N, D) tokens and (B,) int64 cameras, from 0, or `UNKNOWN` → (B, N, D)."""
        known = (cameras != UNKNOWN).to(self.embedding.dtype).unsqueeze(1)
        # Not clamped below 0: a negative index other than UNKNOWN is an error of the lookup.
        vectors = F.embedding(torch.where(cameras == UNKNOWN, 0, cameras), self.embedding)
        return tokens + (self.scale * known * vectors).unsqueeze(1).to(tokens.dtype)
