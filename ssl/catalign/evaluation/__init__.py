"""Evaluation protocols, one file each, and the result files they write."""

from catalign.evaluation.base import (
    Context,
    Result,
    Skipped,
    evaluate,
    load_results,
    merge,
    protocol,
    save_results,
)

__all__ = [
    "Context",
    "Result",
    "Skipped",
    "evaluate",
    "load_results",
    "merge",
    "protocol",
    "save_results",
]
