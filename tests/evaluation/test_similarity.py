from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from catalign.errors import CatalignError
from catalign.evaluation.base import Skipped
from catalign.evaluation.similarity import (
    MATCHING,
    SETS,
    STS,
    f1,
    read_matching,
    read_sts,
    similarity,
    spearman_cases,
    threshold,
)

rng = np.random.default_rng(0)
WORDS = [f"w{number}" for number in range(40)]


class Counting:
    """Embeds a text as the words it has."""

    def knows(self, texts):
        return np.array([bool(set(text.split()) & set(WORDS)) for text in texts])

    def text(self, texts):
        vectors = np.array([[word in text.split() for word in WORDS] for text in texts], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_sts(folder: Path) -> None:
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        lines = []
        for _ in range(30):
            left, shared = rng.choice(WORDS, 6, replace=False), int(rng.integers(0, 6))
            right = [*left[:shared], *rng.choice(WORDS, 6 - shared)]
            lines.append("\t".join(["g", "f", "y", "1", str(shared), " ".join(left), f'{" ".join(right)} "']))
        (folder / f"sts-{split}.csv").write_text("\n".join(lines) + "\n")


def pairs(split: str) -> pd.DataFrame:
    rows = []
    for number in range(24):
        left = rng.choice(WORDS, 6, replace=False)
        match = number % 3 == 0
        right = left[: 5 if match else 2]
        sides = (f"COL title VAL {' '.join(words)} COL price VAL" for words in (left, right))
        rows.append([split, *sides, int(match)])
    return pd.DataFrame(rows, columns=["split", "left", "right", "match"])


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr("catalign.evaluation.significance.DRAWS", 99)
    write_sts(tmp_path / STS)
    (tmp_path / MATCHING).mkdir()
    for name in SETS[:2]:
        table = pd.concat([pairs(split) for split in ("train", "valid", "test")])
        table.to_parquet(tmp_path / MATCHING / f"{name}.parquet")
    return {"sts": str(tmp_path / STS), "matching": str(tmp_path / MATCHING), "sets": list(SETS[:2])}


@pytest.fixture
def measured(folders, catalogue, context):
    def run():
        found = context(catalogue(["a"]), {"text": np.eye(1)}, name="ours", embedder=Counting())
        return similarity(found, **folders)[0]

    return run


def test_what_has_the_words_in_common_is_alike(measured, folders):
    result = measured()
    assert result.metrics["sts/spearman"][0] > 0.8
    assert result.metrics["abt_buy/f1"] == result.metrics["matching/f1"] == [1.0]
    assert result.details["pairs"] == {"sts": 30, "abt_buy": 24, "amazon_google": 24}
    assert "sts/spearman/minus/tfidf/p" in result.significance["ours"]
    assert "abt_buy/f1/low" in result.significance["tfidf"]


def test_random_is_what_calling_every_pair_one_product_gives(measured, folders):
    gold = read_matching(Path(folders["matching"]), "abt_buy").test.gold
    assert measured().baselines["random"]["abt_buy/f1"] == [pytest.approx(f1_score(gold, np.ones(len(gold))))]


def test_thresholds_never_read_test_labels(measured, folders):
    first = measured()
    path = Path(folders["matching"]) / "abt_buy.parquet"
    table = pd.read_parquet(path)
    test = table["split"] == "test"
    table.loc[test, "match"] = 1 - table.loc[test, "match"]
    table.to_parquet(path)
    second = measured()
    assert second.details["thresholds"] == first.details["thresholds"]
    assert second.metrics["abt_buy/f1"] != first.metrics["abt_buy/f1"]
    assert second.protocol["id"] != first.protocol["id"]


def test_threshold_has_the_best_f1_of_all():
    gold = rng.integers(0, 2, 60)
    scores = np.round(gold * 0.3 + rng.random(60), 1)  # with ties
    best = max(f1_score(gold, scores >= cut) for cut in np.unique(scores))
    assert f1_score(gold, scores >= threshold(scores, gold)) == pytest.approx(best)


def test_f1_of_calls_is_scikit_learns():
    gold, called = rng.integers(0, 2, (5, 40)), rng.integers(0, 2, (5, 40))
    expected = [f1_score(truth, call) for truth, call in zip(gold, called, strict=True)]
    assert f1(2 * gold + called) == pytest.approx(expected)


def test_mean_of_rank_products_is_spearman():
    cosines, gold = rng.random(50), rng.integers(0, 6, 50)
    assert spearman_cases(cosines, gold).mean() == pytest.approx(spearmanr(cosines, gold).statistic)


def test_texts_are_read_as_they_are(tmp_path, folders):
    trial = read_matching(Path(folders["matching"]), "abt_buy")
    assert not any("COL" in text or "VAL" in text for text in [*trial.texts, *trial.test.left])
    assert any('"' in text for text in read_sts(Path(folders["sts"])).test.right)  # quotes are text


def test_broken_files_are_refused_by_name(folders, tmp_path):
    (Path(folders["sts"]) / "sts-dev.csv").write_text("a\tb\n")
    with pytest.raises(CatalignError, match=r"sts-dev\.csv is not STS-B"):
        read_sts(Path(folders["sts"]))
    with pytest.raises(CatalignError, match=r"absent\.parquet cannot be read"):
        read_matching(tmp_path, "absent")
    pairs("train").to_parquet(tmp_path / "one.parquet")
    with pytest.raises(CatalignError, match="no pair in split valid"):
        read_matching(tmp_path, "one")


def test_skipped_says_what_it_needs(catalogue, context):
    found = context(catalogue(["a"]), {"text": np.eye(1)}, embedder=Counting())
    with pytest.raises(Skipped, match="sts-benchmark"):
        similarity(found)
    with pytest.raises(CatalignError, match="did you mean 'abt_buy'"):
        similarity(found, sets=["abt_by"])


@pytest.mark.skipif("CATALIGN_DATA" not in os.environ, reason="needs CATALIGN_DATA")
def test_the_public_files():
    root = Path(os.environ["CATALIGN_DATA"])
    trial = read_sts(root / STS)
    assert [len(part.gold) for part in (trial.valid, trial.test)] == [1500, 1379]
    matches = {name: int(sum(read_matching(root / MATCHING, name).test.gold)) for name in SETS}
    assert matches == {"abt_buy": 206, "amazon_google": 234, "walmart_amazon": 193, "wdc_all_small": 1198}
