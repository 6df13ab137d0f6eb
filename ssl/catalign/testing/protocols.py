"""What every protocol must keep, whoever wrote it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from catalign.evaluation.base import Result
from catalign.testing.toys import toy_context


def check_protocol(protocol: Callable[..., list[Result]], folder: Path, **options: Any) -> None:
    """Run a protocol on toy embeddings and check its results.

    Args:
        protocol: The registered function.
        folder: An empty one, such as pytest's ``tmp_path``.
        **options: The protocol's options.

    Raises:
        AssertionError: A result has no protocol id, a number that is not finite, no trivial baseline beside it, or is
            another one the next time.
    """
    results, again = (protocol(toy_context(folder / name), **options) for name in ("first", "again"))
    assert results, "no result"
    for result in results:
        assert result.protocol.get("id"), "make the record with catalign.evaluation.base.protocol"
        assert Result.from_json(result.to_json()).row == result.row
        for key, values in result.metrics.items():
            assert all(map(math.isfinite, values)), f"{key} is {values}"
        for name, metrics in result.baselines.items():
            assert metrics.keys() & result.metrics.keys(), f"baseline {name} shares no key with the metrics"
        assert result.baselines, "put a trivial baseline beside the numbers: random, majority, untrained, …"
    assert [result.to_json() for result in results] == [result.to_json() for result in again], "it is not deterministic"
