"""Fusions: what text and image say about one product, as one vector. One file each."""

from catalign.embeddings.fusion.base import Fusion, fuse_store

__all__ = ["Fusion", "fuse_store"]
