"""How to know without labels whether representations are healthy: numbers that warn of collapse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST = 8
"""Rows that the monitors need to say anything."""


def feature_std(features: Tensor) -> float:
    """Mean over dimensions of the standard deviation of L2-normalised features ``(N, D)``, times sqrt(D).

    One for features spread evenly on the sphere, zero for a collapsed encoder (Chen & He 2021, fig. 2).
    """
    return float(F.normalize(features.float(), dim=1).std(0).mean() * features.shape[1] ** 0.5)


def rankme(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values of ``(N, D)``, in 1..D."""
    singular = torch.linalg.svdvals(features.float())
    p = singular / singular.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of positive pairs of normalised features ``(N, D)`` (Wang & Isola 2020); 0 is best."""
    return float((F.normalize(first.float(), dim=1) - F.normalize(second.float(), dim=1)).square().sum(1).mean())


def uniformity(features: Tensor, t: float = 2.0) -> float:
    """Log mean Gaussian potential between normalised features ``(N, D)`` (Wang & Isola 2020); lower is better."""
    distances = torch.pdist(F.normalize(features.float(), dim=1)).square()
    return float(distances.mul(-t).exp().mean().log())


def warnings_of(values: dict[str, float]) -> list[str]:
    """Sentences about monitors that look like collapse; ``values`` holds ``monitor/<modality>/<name>`` entries."""
    found = []
    for key, value in values.items():
        if key.endswith("feature_std") and value < 0.05:
            found.append(f"{key} is {value:.3f}: the features hardly vary, the encoder may have collapsed")
        if key.endswith("rankme") and value < 4:
            found.append(f"{key} is {value:.1f}: the features span very few dimensions")
        if key.endswith("temperature") and value < 0.0101:
            found.append(f"{key} is at its floor: logits are as sharp as they may be; more regularisation may help")
    return found
