"""How well features find the other images of an object: mAP, CMC, rankings, k-reciprocal re-ranking, and open-set
identification."""

from dual_cross_attention.metrics.identification import IdentificationScores, IdentityDistances, identity_distances
from dual_cross_attention.metrics.reranking import rerank
from dual_cross_attention.metrics.retrieval import RetrievalMetrics, rank_gallery, retrieval_metrics

__all__ = [
    "IdentificationScores",
    "IdentityDistances",
    "RetrievalMetrics",
    "identity_distances",
    "rank_gallery",
    "rerank",
    "retrieval_metrics",
]
