"""Learners of few-shot episodes: from the features of a few labelled products to the labels of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import issparse
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.func import grad, vmap

from catalign.embeddings.fusion.base import normalised
from catalign.errors import CatalignError
from catalign.evaluation.classification import unit
from catalign.retrieval.neighbours import Features

ITERATIONS, EVERY, BATCH = 1_000, 100, 8  # of meta-training: steps, steps between checks, episodes of a step
CHECKED = 200  # episodes of a check
RATE, INNER_RATE, INNER_STEPS = 1e-3, 0.5, 5
SCALE = 10.0  # of dot products of unit vectors before a softmax
HELD_BACK = 0.2  # share of classes that choose when meta-training stops

Learner = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""From unit vectors (N * K, D), class by class, queries (M, D) and N to the queries' class numbers (M,)."""


Weights = dict[str, Tensor]


class Pool(NamedTuple):
    """Products that episodes are drawn from: features (P, D) and class numbers (P,)."""

    features: Features
    labels: np.ndarray


class Shape(NamedTuple):
    """Classes of an episode, products of each to learn from, and products of each to tell apart."""

    ways: int
    shots: int
    queries: int


class Episode(NamedTuple):
    """Positions in a pool: ``support`` (N, K) to learn from, ``queries`` (N, Q) to tell apart, a class per row."""

    support: np.ndarray
    queries: np.ndarray


def draw_episodes(labels: np.ndarray, shape: Shape, seed: int) -> Iterator[Episode]:
    """Episodes without end: classes, and products of each, are drawn without replacement.

    Raises:
        CatalignError: There are fewer classes than an episode has.
    """
    members = [np.flatnonzero(labels == number) for number in np.unique(labels)]
    if len(members) < shape.ways:
        raise CatalignError(
            f"few_shot: {len(members)} classes have enough products, an episode needs {shape.ways}",
            "set evaluation.few_shot.ways, .shots or .queries lower, or leave more values out of alignment",
        )
    draw = np.random.default_rng((seed, *shape))
    while True:
        chosen = draw.choice(len(members), shape.ways, replace=False)
        drawn = [draw.choice(members[number], shape.shots + shape.queries, replace=False) for number in chosen]
        yield Episode(np.stack(drawn)[:, : shape.shots], np.stack(drawn)[:, shape.shots :])


def accuracies(learner: Learner, features: Features, episodes: list[Episode]) -> np.ndarray:
    """(E,) shares of queries told right."""
    features, found = unit(features), []
    for support, queries in episodes:
        known, asked = features[support.ravel()], features[queries.ravel()]
        if issparse(known):  # words that no example has change no answer
            words = np.unique(known.indices)
            known, asked = known[:, words].toarray(), asked[:, words].toarray()
        truth = np.repeat(np.arange(len(queries)), queries.shape[1])
        found.append(float((learner(known, asked, len(queries)) == truth).mean()))
    return np.array(found)


def centroid(support: np.ndarray, queries: np.ndarray, ways: int) -> np.ndarray:
    """The class whose mean is nearest by cosine."""
    means = normalised(support.reshape(ways, -1, support.shape[1]).mean(1))
    return np.asarray((queries @ means.T).argmax(1))


def linear(support: np.ndarray, queries: np.ndarray, ways: int) -> np.ndarray:
    """Logistic regression (Tian et al. 2020)."""
    labels = np.repeat(np.arange(ways), len(support) // ways)
    return np.asarray(LogisticRegression().fit(support, labels).predict(queries))


def protonet(base: Pool, shape: Shape, seed: int) -> Learner:
    """The nearest mean after a linear map that episodes of other classes taught (Snell et al. 2017)."""

    def loss(weights: Weights, support: Tensor, queries: Tensor) -> Tensor:
        return _query_loss(logits(weights, support, queries), queries)

    def logits(weights: Weights, support: Tensor, queries: Tensor) -> Tensor:
        prototypes = F.normalize((support @ weights["map"]).mean(1), dim=-1)
        return SCALE * F.normalize(queries @ weights["map"], dim=-1) @ prototypes.T

    return _meta_train(base, shape, seed, grad(loss), logits)


def maml(base: Pool, shape: Shape, seed: int) -> Learner:
    """A linear map and a classifier that a few gradient steps adapt, first order (Finn et al. 2017).

    The map's start is learned; the classifier starts from zero, since classes come in no order.
    """

    def loss(weights: Weights, products: Tensor) -> Tensor:
        return _query_loss(scores(weights, products), products)

    def scores(weights: Weights, products: Tensor) -> Tensor:
        return SCALE * F.normalize(products @ weights["map"], dim=-1) @ weights["classes"].T

    def adapted(weights: Weights, support: Tensor) -> Weights:
        weights = {**weights, "classes": support.new_zeros(len(support), support.shape[-1])}
        for _ in range(INNER_STEPS):
            slope = grad(loss)(weights, support)
            weights = {name: value - INNER_RATE * slope[name] for name, value in weights.items()}
        return weights

    def slope(weights: Weights, support: Tensor, queries: Tensor) -> Weights:
        at_the_end = grad(loss)(adapted(weights, support), queries)
        return {name: at_the_end[name] for name in weights}

    def logits(weights: Weights, support: Tensor, queries: Tensor) -> Tensor:
        return scores(adapted(weights, support), queries)

    return _meta_train(base, shape, seed, slope, logits)


PLAIN: dict[str, Learner] = {"centroid": centroid, "linear": linear}
META: dict[str, Callable[[Pool, Shape, int], Learner]] = {"protonet": protonet, "maml": maml}


def _query_loss(logits: Tensor, products: Tensor) -> Tensor:
    """Cross-entropy of logits (N, Q, N) of products (N, Q, D), whose row is their class."""
    labels = torch.arange(len(products)).repeat_interleave(products.shape[1])
    return F.cross_entropy(logits.flatten(0, 1), labels)


def _meta_train(
    base: Pool,
    shape: Shape,
    seed: int,
    slope: Callable[[Weights, Tensor, Tensor], Weights],
    logits: Callable[[Weights, Tensor, Tensor], Tensor],
) -> Learner:
    """Learn a linear map (D, D), the identity at first, whose episodes of other classes are answered best.

    Args:
        base: Products of classes that no test episode has.
        shape: Shape of the episodes.
        seed: Draws them, and the classes held back.
        slope: Of weights, support (N, K, D) and queries (N, Q, D): the direction that makes one episode worse.
        logits: Of the same: (N, Q, N).
    """

    def learner(weights: Weights) -> Learner:
        def answer(support: np.ndarray, queries: np.ndarray, ways: int) -> np.ndarray:
            known, asked = (torch.from_numpy(part).unflatten(0, (ways, -1)) for part in (support, queries))
            return logits(weights, known, asked).argmax(-1).flatten().numpy()

        return answer

    held_back, learned = _divided(Pool(unit(base.features), base.labels), shape, seed)
    checks = list(islice(draw_episodes(held_back.labels, shape, seed), CHECKED))
    weights = {"map": torch.eye(base.features.shape[1])}
    optimiser = torch.optim.Adam(weights.values(), lr=RATE)
    stream, best, chosen = draw_episodes(learned.labels, shape, seed + 1), -1.0, weights
    for step in range(ITERATIONS + 1):
        if step % EVERY == 0 and (score := accuracies(learner(weights), held_back.features, checks).mean()) > best:
            best, chosen = score, {name: value.clone() for name, value in weights.items()}
        episodes = list(islice(stream, BATCH))
        support, queries = (torch.from_numpy(learned.features[np.stack(part)]) for part in zip(*episodes, strict=True))
        slopes = vmap(slope, in_dims=(None, 0, 0))(weights, support, queries)
        for name, value in weights.items():
            value.grad = slopes[name].mean(0)
        optimiser.step()
    return learner(chosen)


def _divided(base: Pool, shape: Shape, seed: int) -> tuple[Pool, Pool]:
    """A share of the classes, enough for an episode, and the rest."""
    classes = np.random.default_rng(seed).permutation(np.unique(base.labels))
    count = max(shape.ways, round(HELD_BACK * len(classes)))
    inside = np.isin(base.labels, classes[:count])
    return Pool(base.features[inside], base.labels[inside]), Pool(base.features[~inside], base.labels[~inside])
