"""Galleries: indexes of images of known individuals, to search and to identify new images with.

Uses `inference/`, never `training/`.
"""

from dual_cross_attention.gallery.index import GalleryIndex
from dual_cross_attention.gallery.settings import IndexSettings

__all__ = ["GalleryIndex", "IndexSettings"]
