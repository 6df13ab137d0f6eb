from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, roc_auc_score

from catalign.evaluation import significance
from catalign.evaluation.click_metrics import auc_cases, bin_gaps, loss_cases, measured, reliability, surety


@pytest.fixture
def answered():
    """300 cases of 3 questions, some of them predicted alike, well but not perfectly."""
    rng = np.random.default_rng(0)
    chance = rng.integers(1, 40, (300, 3)) / 50
    return rng.random((300, 3)) < chance**1.3, chance


def test_cases_have_the_metrics_of_scikit_learn_as_their_means(answered):
    taken, chance = answered
    metrics = measured(taken, chance)
    assert auc_cases(taken, chance).mean() == pytest.approx(roc_auc_score(taken.ravel(), chance.ravel()))
    assert loss_cases(taken, chance).mean() == pytest.approx(log_loss(taken.ravel(), chance.ravel()))
    assert metrics["auc"] == pytest.approx(auc_cases(taken, chance).mean())
    assert metrics["log_loss"] == pytest.approx(loss_cases(taken, chance).mean())


def test_spread_of_auc_cases_is_delongs(answered):
    taken, chance = (part.reshape(-1, 1) for part in answered)
    positive, negative = chance[taken], chance[~taken]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    size = [len(positive), len(negative)]
    variance = wins.mean(1).var() / size[0] + wins.mean(0).var() / size[1]
    cases = auc_cases(taken, chance)
    assert cases.var() / len(cases) == pytest.approx(variance)


def test_a_question_asked_twice_in_a_case_makes_nothing_surer(answered):
    taken, chance = answered
    twice = np.hstack([taken, taken]), np.hstack([chance, chance])
    assert auc_cases(*twice) == pytest.approx(auc_cases(taken, chance))
    assert loss_cases(*twice) == pytest.approx(loss_cases(taken, chance))
    assert bin_gaps(*twice) == pytest.approx(bin_gaps(taken, chance))


def test_reliability_is_the_calibration_curve_and_the_error_its_mean_distance(answered):
    taken, chance = answered
    curve = reliability(taken, chance)
    observed, predicted = calibration_curve(taken.ravel(), chance.ravel(), n_bins=10, strategy="quantile")
    assert curve["observed"] == pytest.approx(observed, abs=1e-6)
    assert curve["predicted"] == pytest.approx(predicted, abs=1e-6)
    assert sum(curve["count"]) == taken.size
    distance = np.abs(observed - predicted) @ np.array(curve["count"]) / taken.size
    assert measured(taken, chance)["calibration_error"] == pytest.approx(distance)


def test_the_true_rate_for_everyone_is_calibrated_and_tells_nothing(answered):
    taken, _ = answered
    rate = np.full(taken.shape, taken.mean())
    assert measured(taken, rate) == pytest.approx(
        {"auc": 0.5, "log_loss": log_loss(taken.ravel(), rate.ravel()), "calibration_error": 0}, abs=1e-12
    )


def test_intervals_and_tests(answered, monkeypatch):
    monkeypatch.setattr(significance, "DRAWS", 999)
    taken, chance = answered
    worse = np.random.default_rng(1).permuted(chance)
    found, metrics = surety(taken, chance, {"worse": worse}), measured(taken, chance)
    for key, value in metrics.items():
        assert found[f"{key}/low"] < found[f"{key}/high"]
        assert found[f"{key}/low"] <= value or key == "calibration_error"  # which noise raises
    half = 1.96 * auc_cases(taken, chance).std() / np.sqrt(len(taken))
    assert found["auc/high"] - found["auc/low"] == pytest.approx(2 * half, rel=0.1)
    assert found["auc/minus/worse"] == pytest.approx(metrics["auc"] - measured(taken, worse)["auc"])
    assert found["auc/minus/worse/p"] < 0.01 > found["log_loss/minus/worse/p"]


def test_drawn_calibration_errors_are_those_of_drawn_cases(answered, monkeypatch):
    drawn = []
    monkeypatch.setattr("catalign.evaluation.click_metrics.significance", lambda *given: {})
    monkeypatch.setattr(
        "catalign.evaluation.click_metrics.interval", lambda rows, statistic: drawn.append(statistic) or (0.0, 0.0)
    )
    surety(*answered)
    rows = np.random.default_rng(2).integers(0, 300, (2, 4, 300))
    gaps = bin_gaps(*answered)
    expected = np.abs(gaps[rows].mean(axis=2)).sum(axis=-1)
    assert drawn[0](rows, axis=-1) == pytest.approx(expected)
