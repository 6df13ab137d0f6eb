"""Recommenders that learn little or nothing, to stand beside every sequential result.

None of their settings was chosen by a test split. What a recommender knows nothing of, such as a product without a
train event, is never found: ranked among its equals in catalogue order, it would profit from an order that is often one
of popularity.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
from scipy.sparse import csr_matrix

from catalign.data.interactions import TRAIN, Histories
from catalign.data.ragged import Ragged
from catalign.evaluation.baselines import tfidf
from catalign.retrieval.targets import Fixed, Sparse, Vectors

NEIGHBOURS = 100
"""Of each product in item-kNN: RecBole's default. More of them do a little better on Amazon Beauty's val events."""

BPR = {"factors": 100, "learning_rate": 0.1, "regularization": 0.02, "iterations": 400, "random_state": 0}
"""Settings of BPR-MF: of 19 tried on Amazon Beauty's val events the best that takes less than half a minute there.

HR@10 is .063 with them, .025 with the library's own (rate .01, 100 iterations), and .066 with 800 iterations.
"""

_STEP = 2.0**-30  # of similarities: sums of such numbers are exact in any order, so equal sums tie


def counts(histories: Histories, total: int, *labels: int) -> np.ndarray:
    """(N,) int64 events of each of N products that have one of these labels; all events if none is given."""
    rows = histories.part(*labels) if labels else histories.items
    return np.bincount(rows.values, minlength=total)


def matrix(rows: Ragged, total: int) -> csr_matrix:
    """Rows of products as (R, N) float32 ones; a product that occurs twice in a row counts once."""
    ones = np.ones(len(rows.values), dtype=np.float32)
    made = csr_matrix((ones, np.asarray(rows.values, dtype=np.int32), rows.offsets), shape=(len(rows), total))
    made.sum_duplicates()
    made.data[:] = 1
    return made


def item_knn(histories: Histories, total: int, contexts: Ragged, neighbours: int = NEIGHBOURS) -> Sparse:
    """Products bought by the users who bought those of the context: cosine of train co-occurrence, summed.

    Reference: Deshpande & Karypis, Item-based top-N recommendation algorithms, TOIS 2004.

    Args:
        histories: Their train events are counted, per user.
        total: N, the number of products.
        contexts: What each question starts from.
        neighbours: The most similar products that a product of the context votes for; ties by product row.
    """
    bought = matrix(histories.part(TRAIN), total).astype(np.float64)
    together = (bought.T @ bought).tocoo()  # numbers of users
    alone = together.diagonal()
    other = together.row != together.col
    row, column, both = together.row[other], together.col[other], together.data[other]
    similar = csr_matrix((both / np.sqrt(alone[row] * alone[column]), (row, column)), shape=together.shape)
    known = counts(histories, total, TRAIN) > 0
    return Sparse(matrix(contexts, total).astype(np.float64), _strongest(similar, neighbours), known)


def _strongest(similar: csr_matrix, most: int) -> csr_matrix:
    """The largest entries of each row."""
    entries, values = similar.tocoo(), np.rint(similar.data / _STEP) * _STEP
    order = np.lexsort((entries.col, -values, entries.row))
    kept = order[np.arange(len(order)) - similar.indptr[entries.row[order]] < most]
    return csr_matrix((values[kept], (entries.row[kept], entries.col[kept])), shape=similar.shape)


def bpr_mf(histories: Histories, total: int, users: np.ndarray) -> Vectors | None:
    """Matrix factorisation by Bayesian personalised ranking, on train events; None without the library ``implicit``.

    It knows a user, not a context.

    Reference: Rendle et al., BPR: Bayesian personalized ranking from implicit feedback, UAI 2009.

    Args:
        histories: Their train events are learned from.
        total: N, the number of products.
        users: (Q,) the user who asks each question.
    """
    if find_spec("implicit") is None:
        return None
    of_users, of_products = _factors(histories, total)
    return Vectors(of_users[users], of_products, counts(histories, total, TRAIN) > 0)


@lru_cache(maxsize=1)  # full ranking and sampled negatives are often evaluated one after the other
def _factors(histories: Histories, total: int) -> tuple[np.ndarray, np.ndarray]:
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    model = BayesianPersonalizedRanking(**BPR, num_threads=1)  # several threads race, and no seed repeats that
    model.fit(matrix(histories.part(TRAIN), total), show_progress=False)
    return model.user_factors, model.item_factors


def popularity(histories: Histories, total: int, *labels: int) -> Fixed:
    """What was bought most often, in events with one of these labels; in all events if none is given."""
    often = counts(histories, total, *labels)
    return Fixed(np.where(often > 0, often, -np.inf))


def word_match(titles: Sequence[str], contexts: Ragged) -> Sparse | None:
    """Products whose titles share words with those of the context, by TF-IDF; None where no product has a title."""
    if not any(titles):
        return None
    (documents,) = tfidf(titles)
    return Sparse(matrix(contexts, len(titles)) @ documents, documents.T.tocsr(), np.array([bool(t) for t in titles]))
