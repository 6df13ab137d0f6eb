"""Models that predict clicks, small ones: a constant, logistic regression, and a cross network over embeddings of ids.

Each learns from train questions; what it may choose (strength, epochs), it chooses by the log-loss of val questions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from catalign.data.ragged import Ragged

STRENGTHS = (1.0, 0.1, 0.01, 0.001)
"""Inverse regularisation strengths tried, from weak to strong."""
WIDTH, CROSSES, HIDDEN = 16, 2, 64
EPOCHS, PATIENCE, BATCH, RATE = 10, 2, 1024, 1e-3


@dataclass(frozen=True)
class Questions:
    """What is known of N questions before they are answered.

    Attributes:
        numbers: (N, F) float32.
        categories: (N, K) int64 codes from 0.
        sizes: Of each category, the number of codes.
        history: N rows of codes of the first category, none of them empty; None where there is no such thing.
    """

    numbers: np.ndarray
    categories: np.ndarray
    sizes: tuple[int, ...]
    history: Ragged | None = None

    def __len__(self) -> int:
        return len(self.numbers)


Answered = tuple[Questions, np.ndarray]
"""Questions and (N,) bool answers."""

Predictor = Callable[[Questions], np.ndarray]
"""From questions to (N,) probabilities."""

Learner = Callable[[Answered, Answered, int], Predictor]
"""From train, val and a seed."""


def constant(train: Answered, val: Answered, seed: int = 0) -> Predictor:
    """The train questions' rate for everyone."""
    rate = float(train[1].mean())
    return lambda questions: np.full(len(questions), rate)


def logistic(train: Answered, val: Answered, seed: int = 0) -> Predictor:
    """Logistic regression of standardised numbers and an indicator per code; codes that never trained have none."""
    scaler = StandardScaler().fit(train[0].numbers)
    indicators = OneHotEncoder(handle_unknown="ignore", dtype=np.float32).fit(train[0].categories)

    def table(questions: Questions) -> csr_matrix:
        numbers = csr_matrix(_scaled(questions, scaler).numbers)
        return csr_matrix(hstack([numbers, indicators.transform(questions.categories)], format="csr"))

    x, x_val = table(train[0]), table(val[0])
    fitted = [LogisticRegression(C=strength, max_iter=200).fit(x, train[1]) for strength in STRENGTHS]
    best = min(fitted, key=lambda model: log_loss(val[1], model.predict_proba(x_val)))
    return lambda questions: best.predict_proba(table(questions))[:, 1]


class CrossNetwork(nn.Module):
    """DCN-V2, small (Wang et al. 2021, https://arxiv.org/abs/2008.13535): cross layers beside a perceptron.

    Categories are learned vectors; a history is the mean of such vectors, and its product with the vector of the first
    category is an input too, as in a factorisation machine. Vectors start so short that a code which never trained says
    next to nothing, and the output starts at a constant rate.

    Args:
        questions: Of the shape of those to come.
        rate: Where the output starts.
    """

    def __init__(self, questions: Questions, rate: float) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, WIDTH) for size in questions.sizes)
        self.history = nn.EmbeddingBag(questions.sizes[0], WIDTH, mode="mean") if questions.history else None
        for table in [*self.tables, *([self.history] if self.history else [])]:
            nn.init.normal_(table.weight, std=0.01)
        total = questions.numbers.shape[1] + WIDTH * (len(self.tables) + 2 * bool(self.history))
        self.crosses = nn.ModuleList(nn.Linear(total, total) for _ in range(CROSSES))
        self.deep = nn.Sequential(
            nn.Linear(total, HIDDEN), nn.ReLU(), nn.Dropout(0.1), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()
        )
        self.out = nn.Linear(total + HIDDEN, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, np.log(rate / (1 - rate)))

    def forward(self, numbers: Tensor, categories: Tensor, history: tuple[Tensor, Tensor] | None) -> Tensor:
        """Logits (B,) from numbers (B, F), codes (B, K), and a history's values and offsets (B,)."""
        vectors = [table(codes) for table, codes in zip(self.tables, categories.T, strict=True)]
        if self.history is not None and history is not None:
            mean = self.history(*history)
            vectors += [mean, mean * vectors[0]]
        first = crossed = torch.cat([numbers, *vectors], dim=1)
        for cross in self.crosses:
            crossed = first * cross(crossed) + crossed
        return self.out(torch.cat([crossed, self.deep(first)], dim=1)).squeeze(1)


def dcn(train: Answered, val: Answered, seed: int = 0) -> Predictor:
    """A :class:`CrossNetwork`; of its epochs, and the constant rate before them, the best on val questions is kept."""
    scaler = StandardScaler().fit(train[0].numbers)
    questions, answers = _scaled(train[0], scaler), torch.from_numpy(train[1].astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CrossNetwork(questions, float(train[1].mean()))
        optimiser = torch.optim.AdamW(network.parameters(), lr=RATE)
        losses, kept = [_loss(network, scaler, val)], copy.deepcopy(network.state_dict())
        while len(losses) <= EPOCHS and len(losses) - 1 - int(np.argmin(losses)) < PATIENCE:
            network.train()
            for rows in torch.randperm(len(answers)).split(BATCH):
                logits = network(*_batch(questions, rows.numpy()))
                loss = functional.binary_cross_entropy_with_logits(logits, answers[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            losses.append(_loss(network, scaler, val))
            if losses[-1] == min(losses):
                kept = copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    return lambda asked: _predicted(network, _scaled(asked, scaler))


def _scaled(questions: Questions, scaler: StandardScaler) -> Questions:
    return replace(questions, numbers=scaler.transform(questions.numbers).astype(np.float32))


def _loss(network: CrossNetwork, scaler: StandardScaler, val: Answered) -> float:
    return float(log_loss(val[1], _predicted(network, _scaled(val[0], scaler))))


@torch.inference_mode()
def _predicted(network: CrossNetwork, questions: Questions) -> np.ndarray:
    network.eval()
    parts = np.split(np.arange(len(questions)), range(BATCH, len(questions), BATCH))
    return torch.cat([network(*_batch(questions, rows)) for rows in parts]).double().sigmoid().numpy()


def _batch(questions: Questions, rows: np.ndarray) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """What the network reads of some questions."""
    history = None
    if questions.history is not None:
        own = questions.history.slices(questions.history.offsets[rows], questions.history.offsets[rows + 1])
        history = torch.from_numpy(own.values.astype(np.int64)), torch.from_numpy(own.offsets[:-1])
    return torch.from_numpy(questions.numbers[rows]), torch.from_numpy(questions.categories[rows]), history
