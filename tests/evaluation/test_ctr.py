from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from catalign.data.holdout import TRAIN
from catalign.data.interactions import Histories
from catalign.data.store import EmbeddingStore
from catalign.errors import CatalignError
from catalign.evaluation import significance
from catalign.evaluation.base import Context, Skipped, evaluate
from catalign.evaluation.ctr import content_numbers, ctr, make_trial, questions_of, train_cases
from catalign.evaluation.recommenders import counts
from catalign.testing import check_protocol

PRODUCTS, USERS, TOPICS = 120, 150, 4
SMALL = {"max_train": 400, "max_cases": 100}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(significance, "DRAWS", 99)


@pytest.fixture
def toy(catalogue):
    """Users who keep to one of four topics; products 100 to 119 are bought only at the end, if at all."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        topic = np.arange(user % TOPICS, PRODUCTS, TOPICS)
        rows.append([*rng.permutation(topic[topic < 100])[:5], rng.choice(topic)])
    made = catalogue([f"number {row}" for row in range(PRODUCTS)])
    made.histories = Histories.of((str(user), row) for user, row in enumerate(rows))
    return made


@pytest.fixture
def topics(unit_rows):
    """Vectors that say of which topic a product is, with noise."""
    noise = np.random.default_rng(1).normal(size=(PRODUCTS, TOPICS))
    return unit_rows(np.eye(TOPICS)[np.arange(PRODUCTS) % TOPICS] + 0.1 * noise)


@pytest.fixture
def trial(toy):
    def make(split, **given):
        often = counts(toy.histories, PRODUCTS, TRAIN)
        options = {"negatives": 3, "sampling": "uniform", "most": 1000, "seed": 0, **given}
        return make_trial(toy.histories, often, split, **options), often

    return make


def test_train_cases_are_train_events_after_others(toy):
    cases = train_cases(toy.histories)
    expected = [
        (user, list(row[:place]), row[place])
        for user, row in enumerate(toy.histories.part(TRAIN))
        for place in range(1, len(row))
    ]
    found = zip(cases.users, map(list, cases.contexts), cases.targets, strict=True)
    assert [(int(user), context, target) for user, context, target in found] == expected


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_candidates_are_strangers_to_the_user_and_as_known_as_the_target(trial, toy, split):
    made, often = trial(split)
    assert made.candidates[:, 0].tolist() == made.cases.targets.tolist()
    assert made.taken.sum() == made.taken[:, 0].sum() == len(made.cases)
    for user, candidates in zip(made.cases.users, made.candidates, strict=True):
        assert not set(candidates[1:]) & set(toy.histories.items[user])
        assert len({often[candidate] > 0 for candidate in candidates}) == len(set(candidates)) - 3 == 1
    assert (often[made.candidates[:, 0]] == 0).any() == (split == "test")


def test_a_train_case_does_not_count_its_own_event_and_a_tenth_is_hidden(trial):
    made, often = trial("train")
    hidden = (made.bought == 0).all(axis=1)
    assert 0.05 < hidden.mean() < 0.2
    assert (made.bought[~hidden] > 0).all()
    assert (made.bought[~hidden] == often[made.candidates[~hidden]] - made.taken[~hidden]).all()
    asked = questions_of(made, often)
    assert ((asked.categories[:, 0] == 0) == np.repeat(hidden, 4)).all()
    assert (asked.numbers[np.repeat(hidden, 4), 0] == 0).all()


def test_popular_products_are_drawn_more_often(trial):
    even, often = trial("val")
    popular, _ = trial("val", sampling="popular")
    assert often[popular.candidates[:, 1:]].mean() > 1.1 * often[even.candidates[:, 1:]].mean()


def test_numbers_are_those_of_a_loop(trial, topics):
    made, often = trial("test", most=20)
    small = topics[:, :2]
    content, plain = content_numbers(made, topics, small), questions_of(made, often)
    for number in range(len(plain)):
        case, candidate = number // 4, made.candidates.flat[number]
        context = np.unique(made.cases.contexts[case])
        mean = topics[context].mean(axis=0)
        cosines = [
            mean @ topics[candidate] / np.linalg.norm(mean),
            topics[made.cases.contexts[case][-1]] @ topics[candidate],
        ]
        product = small[candidate] * small[context].mean(axis=0)
        assert content[number] == pytest.approx([*cosines, *small[candidate], *product], abs=1e-5)
        popular, heard = np.log1p(often[candidate]), np.log1p(often[context]).mean()
        assert plain.numbers[number] == pytest.approx([popular, heard, popular * heard], abs=1e-5)
        assert list(plain.history[number]) == list(made.cases.contexts[case])


def test_content_that_decides_is_found_and_beats_what_lacks_it(toy, context, topics):
    found = context(toy, {"text": topics}, {"text": topics[::-1].copy()}, name="ours")
    linear, network = ctr(found, **SMALL)
    assert (linear.row, network.row) == ("ours-logistic", "ours-dcn")
    for result in (linear, network):
        assert result.metrics["toy/auc"][0] > 0.9
        model = result.row.removeprefix("ours-")
        assert result.metrics["toy/auc"][0] > result.baselines[model]["toy/auc"][0] + 0.1
        assert result.significance["ours"][f"toy/auc/minus/{model}/p"][0] < 0.05
        assert f"toy/log_loss/minus/{model}_tfidf" in result.significance["ours"]
        assert result.baselines["constant"]["toy/auc"] == [0.5]
        assert sum(result.details["reliability"]["ours"]["count"]) == 500
        assert result.baselines.keys() == {
            *("constant", "popularity"),
            *(f"{name}{ending}" for name in ("logistic", "dcn") for ending in ("", "_tfidf", "_untrained")),
        }


def test_rows_share_cases_and_the_id_stands_for_them(toy, context, topics):
    first = ctr(context(toy, {"text": topics}), **SMALL)[0]
    other = ctr(context(toy, {"image": topics[::-1].copy()}, seed=3, name="x"), content="image", **SMALL)[0]
    assert first.protocol == other.protocol
    assert other.row == "x-image-logistic"
    assert first.baselines["popularity"] == other.baselines["popularity"]
    again = ctr(context(toy, {"text": topics}), draw=1, **SMALL)[0]
    assert again.protocol["id"] != first.protocol["id"]


def test_texts_may_come_from_an_earlier_stage(toy, context, topics, tmp_path, monkeypatch):
    run = SimpleNamespace(stages=["first", "text", "next"], config=SimpleNamespace(name="run"))
    run.model = "model of {}".format
    run.record = lambda: {"stages": {"text": {"parameters": {"text": 7}}, "next": {"parameters": {"behaviour": 1}}}}
    monkeypatch.setattr("catalign.evaluation.ctr.modalities_of", lambda config, stage: [stage])
    monkeypatch.setattr("catalign.evaluation.ctr.build_model", lambda config, stage, catalogue: f"untrained {stage}")
    asked = []
    monkeypatch.setattr("catalign.evaluation.ctr.Embedder.from_run", lambda run, model: asked.append(model))
    monkeypatch.setattr("catalign.evaluation.ctr.text_vectors", lambda embedder, texts: topics)
    store = EmbeddingStore.write(tmp_path / "items", toy.ids, {"behaviour": topics})
    linear, _ = ctr(Context(toy, store, run=run), **SMALL)
    assert asked == ["model of text", "untrained text"]
    assert linear.details["parameters"] == 7
    stored, _ = ctr(context(toy, {"text": topics}), **SMALL)
    assert linear.metrics["toy/auc"] == pytest.approx(stored.metrics["toy/auc"], abs=1e-3)
    run.stages = ["next"]
    with pytest.raises(Skipped, match="needs text embeddings"):
        ctr(Context(toy, store, run=run), **SMALL)


def test_contract(tmp_path):
    check_protocol(ctr, tmp_path)


def test_skipped_sentences_and_bad_options(toy, context, topics):
    found = context(toy, {"text": topics})
    with pytest.raises(Skipped, match="needs image embeddings"):
        ctr(found, content="image")
    with pytest.raises(Skipped, match="no train case has 110 products"):
        ctr(found, negatives=110)
    with pytest.raises(CatalignError, match="must be 1 or more"):
        evaluate(found, "ctr", negatives=0)
    toy.histories = None
    with pytest.raises(Skipped, match="needs histories"):
        ctr(found)
