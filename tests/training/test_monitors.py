import pytest
import torch

from catalign.training.monitors import alignment, feature_std, rankme, uniformity, warnings_of


def test_spread_features_and_collapsed_features_are_told_apart():
    spread = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    collapsed = torch.ones(2000, 32) + 1e-3 * spread
    assert feature_std(spread) == pytest.approx(1, abs=0.05)
    assert feature_std(collapsed) < 0.01
    assert rankme(spread) > 30
    assert rankme(collapsed) < 4
    assert uniformity(spread) < -3 < uniformity(collapsed)


def test_rankme_counts_equal_directions():
    features = torch.eye(8).repeat(10, 1)
    assert rankme(features) == pytest.approx(8, rel=1e-3)


def test_alignment_is_zero_for_equal_and_four_for_opposite_features():
    features = torch.randn(10, 4)
    assert alignment(features, 3 * features) == pytest.approx(0, abs=1e-6)
    assert alignment(features, -features) == pytest.approx(4)


def test_warnings_name_the_monitor():
    found = warnings_of({"monitor/image/feature_std": 0.01, "monitor/text/rankme": 100.0})
    assert len(found) == 1
    assert "monitor/image/feature_std" in found[0]
