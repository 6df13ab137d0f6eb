"""A catalogue's most suspicious listings, with the reasons in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from catalign.embeddings.fusion import fuse_store
from catalign.errors import CatalignError, unknown
from catalign.retrieval.neighbours import nearest, votes
from catalign.retrieval.retriever import Retriever
from catalign.retrieval.suspicion import combined, disagreement, doubt, isolation, tails, telling_attribute

RARE = 0.05
"""A signal is a reason where at most this share of the listings has a stronger one."""
SAME = 0.99
"""Cosine similarity, of photos and of titles, from which two ids are near-duplicates."""


@dataclass(frozen=True)
class Suspect:
    """A listing that somebody should look at.

    Attributes:
        row: Its catalogue row.
        id: Its product id.
        title: Its primary text.
        suspicion: Negative logarithm of how rare its rarest signal is.
        reasons: What is wrong, strongest first.
        signals: Signal to score; NaN where it has none.
    """

    row: int
    id: str
    title: str
    suspicion: float
    reasons: list[str]
    signals: dict[str, float]


class Audit:
    """Signals of every listing of a run's catalogue.

    ``agreement``: cosine distance of title and photo, where a run aligned them. ``distance``: mean distance of the
    fused embedding to the 5 nearest listings. ``category``: share of the votes of the 20 nearest that is not for the
    listed category. ``likelihood``: improbability of the title. ``duplicate``: similarity to the nearest listing, of
    photos or titles, whichever is less.

    Args:
        retriever: The catalogue, its embeddings and fusion.
        surprise: A language model's improbability of texts; None for none.
        category: The attribute of categories; by default the one whose values neighbours share most.

    Raises:
        CatalignError: The attribute does not exist, or nothing is embedded.
    """

    def __init__(
        self,
        retriever: Retriever,
        surprise: Callable[[Sequence[str]], np.ndarray] | None = None,
        category: str | None = None,
    ) -> None:
        self.catalogue, store = retriever.catalogue, retriever.store
        attributes = self.catalogue.attributes
        if category is not None and category not in attributes:
            raise unknown("attribute of categories", category, attributes)
        vectors, known = fuse_store(retriever.fusion, store)
        self.rows = np.flatnonzero(known)
        if len(self.rows) < 2:
            raise CatalignError(f"catalogue {self.catalogue.name!r} has no two listings to compare")
        vectors = vectors[self.rows]
        columns = {name: values[self.rows].astype(str) for name, values in attributes.items()}
        self.category = category or telling_attribute(columns, vectors)
        distances, self.neighbours = nearest(vectors, vectors, exclude=np.arange(len(vectors)))
        self.signals: dict[str, np.ndarray] = {"distance": isolation(distances)}
        aligned = {str(name): store[name][self.rows] for name in ("text", "image") if name in store.names}
        present = {name: store.present(name)[self.rows] for name in aligned}
        if len({array.shape[1] for array in aligned.values()}) == 1 < len(aligned):
            both = present["text"] & present["image"]
            self.signals["agreement"] = np.where(both, disagreement(aligned["text"], aligned["image"]), np.nan)
        if self.category is not None:
            self.signals["category"] = self._category(columns[self.category], distances)
        if surprise is not None and "text" in present:
            self.signals["likelihood"] = self._likelihood(surprise, present["text"])
        self.signals["duplicate"] = self._likeness(aligned, present)
        self.tails = {name: tails(values) for name, values in self.signals.items()}
        self.suspicion = combined(self.tails.values())

    def _category(self, values: np.ndarray, distances: np.ndarray) -> np.ndarray:
        self.classes, labels = np.unique(values, return_inverse=True)
        shares = votes(distances, labels[self.neighbours], len(self.classes))
        self.guesses, self.shares = shares.argmax(1), shares.max(1)
        return np.where(values != "", doubt(shares, labels), np.nan)

    def _likelihood(self, surprise: Callable[[Sequence[str]], np.ndarray], has_text: np.ndarray) -> np.ndarray:
        values = np.full(len(self.rows), np.nan)
        values[has_text] = surprise(self.catalogue.text().take(self.rows[has_text]))
        return values

    def _likeness(self, aligned: dict[str, np.ndarray], present: dict[str, np.ndarray]) -> np.ndarray:
        first, least = self.neighbours[:, 0], np.full(len(self.rows), np.inf)
        for name, vectors in aligned.items():
            same = np.where(present[name] & present[name][first], 1 - disagreement(vectors, vectors[first]), 0)
            least = np.where(present[name] | present[name][first], np.minimum(least, same), least)
        return least

    def suspects(self, count: int) -> list[Suspect]:
        """The most suspicious listings, worst first; of equal ones that with more strange signals."""
        found = []
        total = np.nansum(np.log(np.stack(list(self.tails.values()))), axis=0)
        for place in np.lexsort((total, -self.suspicion))[:count]:
            row = int(self.rows[place])
            signals = {name: float(values[place]) for name, values in self.signals.items()}
            title = self.catalogue.text()[row]
            suspicion = float(self.suspicion[place])
            found.append(Suspect(row, self.catalogue.ids[row], title, suspicion, self._reasons(int(place)), signals))
        return found

    def _reasons(self, place: int) -> list[str]:
        shares = {name: float(share[place]) for name, share in self.tails.items() if np.isfinite(share[place])}
        order = sorted(shares, key=lambda name: shares[name])
        reasons = [name for name in order if shares[name] <= RARE and name != "duplicate"] or order[:1]
        if self.signals["duplicate"][place] >= SAME:
            reasons = [*(name for name in reasons if name != "duplicate"), "duplicate"]
        return [self._in_words(name, place) for name in reasons]

    def _in_words(self, name: str, place: int) -> str:
        value, usual = self.signals[name][place], float(np.nanmedian(self.signals[name]))
        if name == "agreement":
            return f"photo and title disagree (similarity {1 - value:.2f}, usually {1 - usual:.2f})"
        if name == "category":
            listed = self.catalogue.attributes[str(self.category)][self.rows[place]]
            guess, share = self.classes[self.guesses[place]], self.shares[place]
            if guess == listed:
                return f"{self.category} is {listed}, for which only {share:.0%} of its neighbours vote"
            return f"{self.category} is {listed}, but {share:.0%} of its neighbours vote for {guess or 'nothing'}"
        if name == "likelihood":
            return f"improbable title ({value:.1f} nats per token, usually {usual:.1f})"
        if name == "distance":
            return f"unlike any other listing (distance {value:.2f}, usually {usual:.2f})"
        twin = self.catalogue.ids[self.rows[self.neighbours[place, 0]]]
        return f"near-duplicate of {twin} (similarity {value:.3f})"
