"""The tabular anomaly benchmark, on sets of a few rows."""

import numpy as np
import pytest


@pytest.fixture
def script(load_script):
    return load_script("anomaly/tabular.py")


def test_sets_are_read_and_categories_become_indicators(script, tmp_path):
    (tmp_path / "adbench").mkdir()
    np.savez(tmp_path / "adbench" / "7_toy.npz", X=np.eye(3), y=np.array([0, 1, 0]))
    (tmp_path / "online-shoppers").mkdir()
    heading = ",".join(["ProductRelated", *script.CATEGORIES, "class"])
    lines = [heading, "3,Feb,1,1,1,1,New,FALSE,FALSE", "5,May,2,1,1,1,Old,TRUE,TRUE"]
    (tmp_path / "online-shoppers" / "online_shoppers_intention.csv").write_text("\n".join(lines))
    sets = script.read_sets(tmp_path)
    assert sets["toy"][1].tolist() == [False, True, False]
    x, bought = sets["online-shoppers"]
    assert bought.tolist() == [False, True]
    assert x.shape == (2, 1 + 2 + 2 + 1 + 1 + 1 + 2 + 2)
    assert x[:, 0].tolist() == [3, 5]


def test_what_lies_far_off_is_found_by_its_distance(script):
    pytest.importorskip("pyod")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    y = np.arange(300) % 20 == 0
    x[y] += 8 * rng.choice([-1, 1], (y.sum(), 4))
    for scorer in script.detectors().values():
        found = script.measured(x, y, scorer, seed=1)
        assert found["auroc"] > 0.9
        assert found == script.measured(x, y, scorer, seed=1)
