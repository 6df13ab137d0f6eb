"""catalign: self-supervised multimodal embeddings of products.

The names below are imported when first used, so ``import catalign`` takes milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Catalogue": "catalign.data.catalogue",
    "CatalignError": "catalign.errors",
    "Config": "catalign.config",
    "EmbeddingStore": "catalign.data.store",
    "Index": "catalign.retrieval.index",
    "Objective": "catalign.objectives.base",
    "Result": "catalign.evaluation.base",
    "Retriever": "catalign.retrieval.retriever",
    "Run": "catalign.training.run",
    "compose": "catalign.config",
    "register": "catalign.registry",
    "run_experiment": "catalign.pipeline",
}
__all__ = ["__version__", *sorted(_EXPORTS)]  # noqa: PLE0604 - they are strings


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'catalign' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
