"""A loaded model: what answers with it needs, and nothing of training."""
