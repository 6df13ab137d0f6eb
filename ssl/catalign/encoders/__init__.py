"""Encoders: one per modality, each a module from a batch to token features and one pooled vector."""

from catalign.encoders.base import Encoded, Encoder, build_encoders
from catalign.encoders.image import ImageEncoder
from catalign.encoders.sequence import SequenceEncoder
from catalign.encoders.text import TextEncoder

__all__ = ["Encoded", "Encoder", "ImageEncoder", "SequenceEncoder", "TextEncoder", "build_encoders"]
