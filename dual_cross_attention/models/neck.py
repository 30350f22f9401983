"""BN neck: the triplet loss uses the feature before batch normalization, the classifier the one after it.

Source: Luo et al. 2019, "Bag of Tricks and a Strong Baseline for Deep Person Re-identification", section 3.5.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class NeckClassifier(nn.Module):
    """A feature → batch normalization (the neck) → a classifier without bias.

    The neck's shift stays at 0 and the classifier has no bias, so identities part by direction from the origin, as the
    cosine between features does at retrieval.

    Args:
        dim: width of the feature.
        num_identities: width of the classifier.
    """

    def __init__(self, dim: int, num_identities: int):
        super().__init__()
        self.neck = nn.BatchNorm1d(dim)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(dim, num_identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, feature: Tensor, passing: bool = False) -> Tensor:
        """(B, D) → logits (B, num_identities).

        Args:
            passing: normalize by the batch's own statistics and leave the running ones alone. PWCA shares SA's neck in
                training; the running statistics are for retrieval, where there is SA only.
        """
        if not passing:
            return self.classifier(self.neck(feature))
        weight, bias, eps = self.neck.weight, self.neck.bias, self.neck.eps
        return self.classifier(F.batch_norm(feature, None, None, weight, bias, training=True, eps=eps))
