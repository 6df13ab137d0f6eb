from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from catalign.evaluation.baselines import centred, random_metrics, raw_pixels, tfidf, word_orders
from catalign.retrieval.metrics import average_precision, hit, judge, ndcg, precision, recall, reciprocal_rank


def enumerated(relevant: int, gallery: int, ks: tuple[int, ...], cut: int | None) -> dict[str, float]:
    """Metrics averaged over every ranking there is."""
    ranking = np.array(list(permutations(range(gallery))))
    wanted = [np.arange(relevant)] * len(ranking)
    judged = judge(ranking, wanted)
    ranks = [np.flatnonzero(row) + 1 for row in judged]
    values = {"mrr": reciprocal_rank(judged, cut), "map": average_precision(ranks)}
    for k in ks:
        values |= {f"recall@{k}": recall(judged, wanted, k), f"hit@{k}": hit(judged, k)}
        values |= {f"precision@{k}": precision(judged, k), f"ndcg@{k}": ndcg(judged, wanted, k)}
    means = {key: float(value.mean()) for key, value in values.items()}
    return {**means, "median_rank": float(np.quantile([r.min() for r in ranks], 0.5, method="inverted_cdf"))}


@pytest.mark.parametrize("relevant", [1, 2, 4, 6])
@pytest.mark.parametrize("cut", [2, None])
def test_random_is_the_mean_over_all_rankings(relevant, cut):
    expected = enumerated(relevant, 6, (1, 3, 10), cut)
    found = random_metrics(np.array([relevant]), 6, (1, 3, 10), cut)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value), key


def test_random_averages_over_queries():
    both = random_metrics(np.array([1, 4]), 6, (1, 3))
    alone = [random_metrics(np.array([r]), 6, (1, 3)) for r in (1, 4)]
    for key in set(both) - {"median_rank"}:
        assert both[key] == pytest.approx((alone[0][key] + alone[1][key]) / 2), key


def test_random_on_a_large_gallery_is_finite_and_small():
    found = random_metrics(np.array([1, 20_000]), 44_434, (1, 10), 10)
    assert found["recall@10"] == pytest.approx(10 / 44_434)
    assert found["precision@10"] == pytest.approx((1 + 20_000) / 2 / 44_434)
    assert all(np.isfinite(value) for value in found.values())


def test_words_match_whatever_case_and_number():
    documents, queries = tfidf(
        ["Nike Men Blue Shoes", "Puma women red dress", "watch"], ["shoe", "RED DRESSES", "sofa"]
    )
    scores = (queries @ documents.T).toarray()
    assert scores[0].argmax() == 0
    assert scores[1].argmax() == 1
    assert not scores[2].any()
    assert np.allclose(documents.multiply(documents).sum(1), 1)


def test_word_orders_break_ties_by_row_and_do_not_depend_on_chunks():
    documents, queries = tfidf(["b", "a", "a", "c"], ["a", "none", "c"])
    orders = np.concatenate(list(word_orders(queries, documents)))
    assert orders.tolist() == [[1, 2, 0, 3], [0, 1, 2, 3], [3, 0, 1, 2]]
    assert np.array_equal(orders, np.concatenate(list(word_orders(queries, documents, chunk=1))))


def test_raw_pixels_are_averages(catalogue):
    toy = catalogue(["a", "b", "c"])
    toy.images[2] = 255
    found = raw_pixels(toy, np.array([2, 0]), size=(4, 3), chunk=1)
    assert found.shape == (2, 36)
    assert np.allclose(found[0], 1)
    block = toy.images[0, :4, :4, 1].mean() / 255  # rows and columns that the first of 4 x 3 cells covers
    assert found[1].reshape(3, 4, 3)[1, 0, 0] == pytest.approx(block)
    mirrored = raw_pixels(toy, np.array([2, 0]), size=(4, 3), view=lambda photos: photos[:, :, ::-1])
    assert np.allclose(mirrored.reshape(2, 3, 4, 3), found.reshape(2, 3, 4, 3)[..., ::-1])


def test_centred_rows_are_unit_and_differ_only_by_what_varies():
    vectors = np.array([[100.0, 1.0], [100.0, -1.0]], dtype=np.float32)
    assert np.allclose(centred(vectors), [[0, 1], [0, -1]])
