"""timm's Vision Transformers, opened at their attention: one file a family."""
