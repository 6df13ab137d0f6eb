from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from catalign.data.holdout import LEFT_OUT, TEST, TRAIN
from catalign.data.interactions import Histories
from catalign.data.ragged import Ragged
from catalign.data.store import EmbeddingStore
from catalign.embeddings.fusion.concat import Concat
from catalign.errors import CatalignError
from catalign.evaluation import recommenders
from catalign.evaluation.base import Context, Skipped, evaluate
from catalign.evaluation.sequential import sequential
from catalign.evaluation.target_metrics import rank_metrics

PRODUCTS, USERS, WIDTH = 60, 40, 6
BESIDE = {"random", "popularity", "popularity_leaking", "item_knn", "tfidf"}


@pytest.fixture(autouse=True)
def quick_bpr(monkeypatch):
    monkeypatch.setitem(recommenders.BPR, "iterations", 2)


class Mean:
    """Embeds a history as the mean of vectors that a test gave."""

    def __init__(self, vectors, encoders=("behaviour",)):
        self.vectors, self.model, self.asked = vectors, SimpleNamespace(encoders=dict.fromkeys(encoders)), []

    def histories(self, histories):
        self.asked = [list(history) for history in histories]
        return np.array([self.vectors[history].mean(axis=0) for history in histories], dtype=np.float32)


class Told:
    """Embeds every history as the vector of its case, in order."""

    def __init__(self, vectors):
        self.vectors, self.model = vectors, SimpleNamespace(encoders={"behaviour": None})

    def histories(self, histories):
        return self.vectors[: len(histories)]


@pytest.fixture
def toy(catalogue):
    """40 users of 60 products; products 50 to 59 are bought only at the end, if at all."""
    rng = np.random.default_rng(0)
    made = catalogue([f"title {row % 7}" for row in range(PRODUCTS)])
    rows = [[*rng.permutation(50)[: rng.integers(3, 9)], rng.integers(0, PRODUCTS)] for _ in range(USERS)]
    made.histories = Histories.of((str(user), row) for user, row in enumerate(rows))
    return made


@pytest.fixture
def item_vectors():
    return np.random.default_rng(1).normal(size=(PRODUCTS, WIDTH)).astype(np.float32)


@pytest.fixture
def behaviour(toy, tmp_path):
    """A function from item vectors to a context over a store that holds them."""

    def make(vectors, embedder=None, present=None, **given):
        store = EmbeddingStore.write(
            tmp_path / "items", toy.ids, {"behaviour": vectors}, None if present is None else {"behaviour": present}
        )
        return Context(toy, store, embedder=embedder or Mean(vectors), name="ours", **given)

    return make


def slow_ranks(cases, vectors, embedder, allowed=None, present=None):
    """Every product scored and sorted, one case after the other."""
    ranks = []
    for row, target in enumerate(cases.targets):
        query = embedder.histories([cases.contexts[row]])[0].astype(float)
        scores = np.array([np.dot(query, vector) for vector in vectors.astype(float)])
        out = np.zeros(len(vectors), bool) if allowed is None else ~allowed
        out[cases.contexts[row]] = True
        out[target] = False
        if present is not None:
            out |= ~present
        scores[out] = -np.inf
        place = np.flatnonzero(np.argsort(-scores, kind="stable") == target)[0] + 1.0
        ranks.append(np.inf if np.isneginf(scores[target]) else place)
    return np.array(ranks)


def assert_metrics(found, ranks, prefix="toy"):
    for key, value in rank_metrics(ranks, (1, 5, 10, 20)).items():
        assert found[f"{prefix}/{key}"] == [pytest.approx(value)], key


@pytest.mark.parametrize("split", ["test", "val"])
def test_all_products_but_those_of_the_context_are_ranked(behaviour, toy, item_vectors, split):
    context = behaviour(item_vectors)
    (result,) = sequential(context, split=split)
    cases = toy.histories.cases(split)
    assert context.embedder.asked == [list(cases.contexts[row]) for row in range(len(cases))]
    ranks = slow_ranks(cases, item_vectors, Mean(item_vectors))
    assert_metrics(result.metrics, ranks)
    often = recommenders.counts(toy.histories, PRODUCTS, TRAIN)[cases.targets]
    for name, chosen in {"cold": often == 0, "tail": (often > 0) & (often <= 5), "middle": often > 5}.items():
        if chosen.any():
            assert result.metrics[f"toy/{name}/hr@10"] == [pytest.approx((ranks[chosen] <= 10).mean())]
        assert result.details["cases"][name] == chosen.sum()
    assert result.row == {"test": "ours", "val": "ours-val"}[split]
    assert result.protocol["name"] == f"sequential-toy-{split}"


def test_a_perfect_recommender_scores_1(behaviour, toy):
    identity = np.eye(PRODUCTS, dtype=np.float32)
    (result,) = sequential(behaviour(identity, Told(identity[toy.histories.cases("test").targets])))
    assert {value for values in result.metrics.values() for value in values} == {1.0}


def test_equal_vectors_are_ranked_in_catalogue_order(behaviour, toy):
    (result,) = sequential(behaviour(np.ones((PRODUCTS, WIDTH), np.float32)))
    cases = toy.histories.cases("test")
    ranks = [1 + t - sum(p < t for p in set(cases.contexts[c]) - {t}) for c, t in enumerate(cases.targets)]
    assert_metrics(result.metrics, np.array(ranks, dtype=float))


def test_a_product_without_a_vector_is_never_found(behaviour, toy, item_vectors):
    present = np.arange(PRODUCTS) % 3 > 0
    (result,) = sequential(behaviour(np.where(present[:, None], item_vectors, 0), Mean(item_vectors), present))
    cases = toy.histories.cases("test")
    assert_metrics(result.metrics, slow_ranks(cases, item_vectors, Mean(item_vectors), present=present))
    assert result.details["targets_without_vector"] == (cases.targets % 3 == 0).sum() > 0


def test_seen_products_can_be_kept_and_seen_targets_are_ranked(behaviour, toy, item_vectors):
    toy.histories = Histories.of((str(user), [user, user + 1, user + 2, user]) for user in range(30))
    context = behaviour(item_vectors)
    (without,), (kept,) = sequential(context), sequential(context, seen="keep")
    assert_metrics(without.metrics, slow_ranks(toy.histories.cases("test"), item_vectors, Mean(item_vectors)))
    assert without.details["targets_in_context"] == 30
    assert kept.metrics["toy/hr@10"][0] <= without.metrics["toy/hr@10"][0]
    assert kept.metrics["toy/mrr"][0] < without.metrics["toy/mrr"][0]
    assert (kept.row, kept.protocol["name"]) == ("ours-seen", "sequential-toy-test-seen")
    expected = np.mean(1 / np.array([PRODUCTS - 2, PRODUCTS])[:, None] * [5, 5], axis=1)
    for result, share in zip((without, kept), expected, strict=True):
        assert result.baselines["random"]["toy/hr@5"] == [pytest.approx(share)]


def test_negatives_are_the_same_for_every_row_and_their_digest_is_in_the_id(behaviour, item_vectors):
    first, again = (sequential(behaviour(v), negatives=20)[0] for v in (item_vectors, -item_vectors))
    assert first.protocol == again.protocol
    assert first.protocol["name"] == "sequential-toy-test-20-uniform"
    assert first.row == "ours-20-uniform"
    assert first.baselines["popularity"] == again.baselines["popularity"]
    assert first.baselines["random"]["toy/hr@5"] == [pytest.approx(5 / 21)]
    context = behaviour(item_vectors)
    others = [sequential(context, negatives=20, **o)[0] for o in ({"draw": 1}, {"sampling": "popular"})]
    assert len({result.protocol["id"] for result in (first, *others)}) == 3
    assert first.metrics["toy/hr@10"][0] > sequential(context)[0].metrics["toy/hr@10"][0]


def test_a_target_is_ranked_among_its_negatives(behaviour, toy, item_vectors, monkeypatch):
    negatives = np.random.default_rng(2).integers(0, PRODUCTS, (len(toy.histories.cases("test")), 5))
    monkeypatch.setattr("catalign.evaluation.sequential.draw_negatives", lambda *given, seed: negatives)
    (result,) = sequential(behaviour(item_vectors), negatives=5)
    cases, ranks = toy.histories.cases("test"), []
    for row, target in enumerate(cases.targets):
        query = Mean(item_vectors).histories([cases.contexts[row]])[0].astype(float)
        scores = {p: float(np.dot(query, item_vectors[p].astype(float))) for p in {target, *negatives[row]}}
        better = [p for p in negatives[row] if (-scores[p], p) < (-scores[target], target)]
        ranks.append(1.0 + len(better))
    assert_metrics(result.metrics, np.array(ranks))


def test_cold_gallery_ranks_cold_products_for_cold_targets(behaviour, toy, item_vectors):
    toy.histories = cold_split(toy.histories)
    (result,) = sequential(behaviour(item_vectors), gallery="cold")
    cases = toy.histories.cases("test")
    cold = recommenders.counts(toy.histories, PRODUCTS, TRAIN) == 0
    assert result.details["gallery"] == cold.sum()
    assert cold[cases.targets].all()
    assert_metrics(result.metrics, slow_ranks(cases, item_vectors, Mean(item_vectors), allowed=cold))
    assert result.metrics["toy/hr@10"] == result.metrics["toy/cold/hr@10"]
    assert result.protocol["name"] == "sequential-toy-test-cold"
    for name in ("popularity", "item_knn"):  # they know nothing of such products
        assert result.baselines[name]["toy/mrr"] == [0]


def cold_split(histories):
    """Events of products from 50 on never train."""
    labels, cold = np.zeros(len(histories.items.values), np.uint8), histories.items.values >= 50
    labels[cold] = LEFT_OUT
    last = histories.items.offsets[1:] - 1
    labels[last[cold[last]]] = TEST
    return Histories(histories.users, histories.items, Ragged(labels, histories.items.offsets))


def test_cases_of_warm_targets_are_left_out_of_a_cold_gallery(behaviour, toy, item_vectors):
    cases = toy.histories.cases("test")
    cold = recommenders.counts(toy.histories, PRODUCTS, TRAIN) == 0
    (result,) = sequential(behaviour(item_vectors), gallery="cold")
    assert result.details["cases"]["all"] == cold[cases.targets].sum()
    assert result.details["cases_left_out"] == (~cold[cases.targets]).sum()
    toy.histories = Histories.of([("a", [0, 1, 2]), ("b", [1, 2, 0]), ("c", [2, 0, 1])])  # 0, 1 and 2 train
    with pytest.raises(Skipped, match="no case has a cold target"):
        sequential(behaviour(item_vectors), gallery="cold")


def test_baselines_stand_on_the_same_cases(behaviour, toy, item_vectors):
    (result,) = sequential(behaviour(item_vectors))
    assert set(result.baselines) - {"bpr_mf"} == BESIDE
    cases, often = toy.histories.cases("test"), recommenders.counts(toy.histories, PRODUCTS, TRAIN)
    products = np.where(often > 0, often, -1).astype(np.float32)[:, None]
    ranks = slow_ranks(cases, products, SimpleNamespace(histories=lambda h: np.ones((1, 1))), present=often > 0)
    assert_metrics(result.baselines["popularity"], ranks)
    leaking, clean = (result.baselines[f"popularity{end}"]["toy/mrr"][0] for end in ("_leaking", ""))
    assert leaking > clean
    for metrics in result.baselines.values():
        assert metrics.keys() == result.metrics.keys()


def test_without_implicit_the_details_say_so(behaviour, item_vectors, monkeypatch):
    monkeypatch.setattr(recommenders, "find_spec", lambda name: None)
    (result,) = sequential(behaviour(item_vectors))
    assert "bpr_mf" not in result.baselines
    assert "pip install" in result.details["baselines"]["bpr_mf"]


def test_untrained_encoders_stand_beside(behaviour, toy, item_vectors, tmp_path):
    other = -item_vectors
    store = EmbeddingStore.write(tmp_path / "untrained", toy.ids, {"behaviour": other})
    (result,) = sequential(behaviour(item_vectors, untrained=store, untrained_embedder=Mean(other)))
    expected = slow_ranks(toy.histories.cases("test"), other, Mean(other))
    assert_metrics(result.baselines["untrained"], expected)


def test_histories_are_compared_with_fused_content_where_no_item_is_scored(toy, context, item_vectors, unit_rows):
    text, image = unit_rows(item_vectors), unit_rows(item_vectors[::-1])
    found = context(toy, {"text": text, "image": image}, embedder=Mean(text))
    (result,) = sequential(found)
    ranks = slow_ranks(toy.histories.cases("test"), found.fused(found.store)[0], Mean(text))
    assert_metrics(result.metrics, ranks)


def test_a_fusion_that_takes_behaviour_places_histories(toy, context, item_vectors, unit_rows):
    text, image = unit_rows(item_vectors), unit_rows(item_vectors[::-1])
    fusion = Concat().fit({"behaviour": text, "text": text, "image": image})
    found = context(toy, {"text": text, "image": image}, embedder=Mean(text), fusion=fusion)
    (result,) = sequential(found)
    cases = toy.histories.cases("test")
    asked = Mean(text).histories([cases.contexts[row] for row in range(len(cases))])
    placed = iter(fusion({"behaviour": asked}))
    slow = slow_ranks(cases, found.fused(found.store)[0], SimpleNamespace(histories=lambda h: [next(placed)]))
    assert_metrics(result.metrics, slow)


def test_skipped_sentences(toy, context, item_vectors, behaviour, unit_rows):
    text, image = unit_rows(item_vectors), unit_rows(item_vectors[::-1])
    vectors = {"text": text, "image": image}
    with pytest.raises(Skipped, match="needs a behaviour encoder"):
        sequential(context(toy, vectors))
    with pytest.raises(Skipped, match="needs a behaviour encoder"):
        sequential(context(toy, vectors, embedder=Mean(text, ["text"])))
    unaligned = context(toy, vectors, embedder=Mean(text), fusion=Concat().fit(vectors))
    with pytest.raises(Skipped, match="histories have width 6 and fused products 12"):
        sequential(unaligned)
    features = context(toy, {"text_features": text}, embedder=Mean(text))
    with pytest.raises(Skipped, match="embeds no products"):
        sequential(features)
    toy.histories = None
    with pytest.raises(Skipped, match="needs histories"):
        sequential(behaviour(item_vectors))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": []}, "ks is"),
        ({"ks": [0, 5]}, "cut-offs of 1 or more"),
        ({"buckets": [5]}, "two rising counts"),
        ({"buckets": [20, 5]}, "two rising counts"),
        ({"negatives": 0}, "null ranks all products"),
        ({"negatives": 58}, "products to draw from"),
        ({"sampling": "popula", "negatives": 5}, "sampling"),
        ({"split": "train"}, "split"),
    ],
)
def test_bad_options_are_named(behaviour, item_vectors, options, message):
    with pytest.raises(CatalignError, match=message):
        evaluate(behaviour(item_vectors), "sequential", **options)


def test_the_id_stands_for_the_log(behaviour, toy, item_vectors):
    (first,) = sequential(behaviour(item_vectors))
    (same,) = sequential(behaviour(-item_vectors))
    toy.histories = Histories.of(
        [*((u, toy.histories.items[n]) for n, u in enumerate(toy.histories.users)), ("x", [1, 2, 3])]
    )
    (other,) = sequential(behaviour(item_vectors))
    assert first.protocol["id"] == same.protocol["id"] != other.protocol["id"]
