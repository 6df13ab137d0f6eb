from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import norm

from catalign.evaluation.significance import compare, interval, significance


def test_interval_is_that_of_the_normal_law_for_many_cases():
    cases = np.random.default_rng(0).random(400)
    low, high = interval(cases)
    half = norm.ppf(0.975) * cases.std(ddof=1) / len(cases) ** 0.5
    assert (low, high) == pytest.approx((cases.mean() - half, cases.mean() + half), abs=0.1 * half)


def test_p_value_is_the_share_of_swaps_as_far_apart():
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.5, 1, 8), rng.normal(size=8)
    found = compare(first, second)
    differences = first - second
    swapped = [abs(np.mean(np.array(signs) * differences)) for signs in product([1, -1], repeat=8)]
    assert found["/p"] == pytest.approx(np.mean(np.array(swapped) >= abs(differences.mean()) - 1e-12))
    assert found[""] == pytest.approx(differences.mean())
    assert found["/low"] < differences.mean() < found["/high"]


def test_pairing_sees_what_separate_intervals_hide():
    rng = np.random.default_rng(0)
    hard = rng.random(60)  # how hard a case is for both
    better = hard + 0.02 + rng.normal(0, 0.01, 60)
    found = significance({"m": better}, {"worse": {"m": hard}})
    assert found["m/low"] < hard.mean()
    assert found["m/minus/worse/low"] > 0
    assert found["m/minus/worse/p"] < 0.01


def test_equal_rows_do_not_differ():
    cases = np.random.default_rng(0).random(50)
    assert compare(cases, cases.copy()) == {"": 0.0, "/low": 0.0, "/high": 0.0, "/p": 1.0}


def test_a_statistic_that_is_no_mean():
    cases = np.random.default_rng(0).exponential(size=40)
    found = significance({"m": cases}, {"zero": {"m": np.zeros(40)}}, statistic=np.max)
    assert found["m/minus/zero"] == cases.max() == found["m/high"]


def test_only_metrics_that_both_have_are_compared_and_draws_repeat():
    scores = np.random.default_rng(0).random((2, 10))
    both = {"a": scores[0], "b": scores[1]}
    found = significance(both, {"other": {"a": scores[1]}})
    assert set(found) == {f"{key}/{end}" for key in "ab" for end in ("low", "high")} | {
        f"a/minus/other{part}" for part in ("", "/low", "/high", "/p")
    }
    assert found == significance(both, {"other": {"a": scores[1]}})
