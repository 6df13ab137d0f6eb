"""Click prediction on the Open Bandit logs, on logs of a few impressions, and the reliability figure."""

from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from catalign.evaluation import significance
from catalign.evaluation.base import Result
from catalign.evaluation.click_models import Questions


@pytest.fixture
def script(load_script, monkeypatch):
    monkeypatch.setattr(significance, "DRAWS", 99)
    return load_script("ctr/open_bandit.py")


@pytest.fixture
def logs(tmp_path, script):
    """Three items per campaign; the affinities of users and items decide about clicks."""
    rng = np.random.default_rng(0)
    for campaign in script.CAMPAIGNS:
        features = {f"item_feature_{n}": [f"{n}a", f"{n}b", f"{n}a"] for n in (1, 2, 3)}
        items = pd.DataFrame({"item_id": [0, 1, 2], "item_feature_0": [0.1, -1.0, 2.0], **features})
        items.to_csv(tmp_path / f"item_context_{campaign}.csv", index=False)
        for policy in script.POLICIES:
            item, affinity = rng.integers(0, 3, 350), rng.integers(0, 2, (350, 3)).astype(float)
            own = affinity[np.arange(350), item]
            log = pd.DataFrame({"item_id": item, "position": rng.integers(1, 4, 350), "propensity_score": 1 / 3})
            log["click"] = (rng.random(350) < 0.05 + 0.6 * own).astype(int)
            log["timestamp"] = [f"2019-11-{day} 12:00:00+00:00" for day in np.repeat(np.arange(24, 31), 50)]
            log = log.assign(**{f"user_feature_{n}": "u" for n in range(4)})
            log = log.assign(**{f"user-item_affinity_{n}": affinity[:, n] for n in range(3)})
            log.to_parquet(tmp_path / f"{policy}_{campaign}.parquet")
    return tmp_path


def test_affinity_is_that_of_the_item_shown_and_items_are_of_their_campaign(script, logs):
    table = script.read_logs(logs)
    assert len(table) == 6 * 350
    assert table["item"].nunique() == 9
    log = pd.read_parquet(logs / "bts_women.parquet").iloc[17]
    row = table[(table["policy"] == "bts") & (table["campaign"] == "women")].iloc[17]
    assert row["item"] == f"women{log['item_id']}"
    assert row["affinity"] == pytest.approx(np.log1p(log[f"user-item_affinity_{log['item_id']}"]))
    assert row["affinities"] == pytest.approx(np.log1p(sum(log[f"user-item_affinity_{n}"] for n in range(3))))
    assert "propensity_score" not in table


def test_item_rates_start_from_the_rate_of_all(script, monkeypatch):
    monkeypatch.setattr(script, "SMOOTHING", (2.0,))
    asked = Questions(np.zeros((4, 1), np.float32), np.array([[0], [0], [0], [1]]), (3,))
    answers = np.array([True, True, False, False])
    new = Questions(np.zeros((3, 1), np.float32), np.array([[0], [1], [2]]), (3,))
    expected = [(2 + 2 * 0.5) / (3 + 2), (0 + 2 * 0.5) / (1 + 2), 0.5]
    assert script.item_rate((asked, answers), (asked, answers))(new) == pytest.approx(expected)


def test_results_and_their_figure(script, logs, load_script):
    linear, network = script.results_of(script.read_logs(logs))
    assert (linear.seeds, network.seeds) == ([0], [0, 1, 2])
    assert linear.details["impressions"] == {"train": 1200, "val": 300, "test": 600}
    for result in (linear, network):
        assert min(result.metrics["all/auc"]) > 0.7 > result.baselines["item_rate"]["all/auc"][0]
        assert result.significance["ours"]["all/auc/minus/item_rate/p"][0] < 0.05
        assert {"bts-men/auc/low", "random/log_loss/high"} <= result.significance["ours"].keys()
        assert "random/auc/minus/item_rate" not in result.significance["ours"]
        assert Result.from_json(result.to_json()).row == result.row
    svg = load_script("ctr/reliability.py").draw([linear, network])
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    for name in ("logistic", "dcn", "item_rate"):
        assert f">{name}<" in svg
    assert ">constant<" not in svg
