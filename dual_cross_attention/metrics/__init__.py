"""How well features find the other images of an object: mAP, CMC, rankings, k-reciprocal re-ranking."""

from dual_cross_attention.metrics.reranking import rerank
from dual_cross_attention.metrics.retrieval import RetrievalMetrics, rank_gallery, retrieval_metrics

__all__ = ["RetrievalMetrics", "rank_gallery", "rerank", "retrieval_metrics"]
