"""Panels of the report that show products: cards, the map of embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from catalign.data.catalogue import Catalogue
from catalign.data.store import EmbeddingStore
from catalign.embeddings.fusion import Fusion, fuse_store
from catalign.errors import CatalignError
from catalign.reporting import plots
from catalign.training.run import Run

MAPPED = 2000


def card(catalogue: Catalogue, row: int) -> dict[str, Any]:
    """A product as the template shows it: photo, title, id and a few attributes."""
    attributes = [str(values[row]) for values in catalogue.attributes.values() if values[row]]
    return {
        "id": catalogue.ids[row],
        "title": catalogue.text()[int(row)] or "(no title)",
        "picture": plots.picture(np.asarray(catalogue.images[row])) if catalogue.has_image[row] else None,
        "attributes": attributes[:4],
    }


def sample(rows: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` rows in random order, always the same ones."""
    return np.random.default_rng(0).permutation(rows)[:count]


def embedding_map(run: Run, catalogue: Catalogue) -> dict[str, Any]:
    """A 2-D map of fused vectors of at most 2,000 products, coloured by the attribute that explains it best."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    store = EmbeddingStore.open(run.path / "embeddings", verify=False)
    vectors, known = fuse_store(Fusion.load(run.path / "fusion"), store)
    rows = np.sort(sample(np.flatnonzero(known), MAPPED))
    chosen = np.asarray(vectors[rows], np.float32)
    if len(rows) < 10:
        raise CatalignError(f"a map of {len(rows)} products shows nothing")
    name, values, purity = _telling_attribute(catalogue, rows, chosen)
    points = PCA(min(30, *chosen.shape), random_state=0).fit_transform(chosen)
    method = "PCA" if len(rows) < 60 else "t-SNE"
    if method == "t-SNE":
        points = TSNE(perplexity=min(30, len(rows) // 4), init="pca", angle=0.7, random_state=0).fit_transform(points)
    shown = plots.most_common(values)
    svg = plots.embedding_map(
        points[:, :2], values, shown, label=f"{method} map of products coloured by {name or 'nothing'}"
    )
    legend = [(value, number, int(np.sum(np.asarray(values) == value))) for number, value in enumerate(shown, start=1)]
    others = len(rows) - sum(size for _, _, size in legend)
    return {
        "svg": Markup(svg),
        "method": method,
        "attribute": name,
        "legend": legend,
        "others": others,
        "products": len(rows),
        "purity": purity,
    }


def _telling_attribute(
    catalogue: Catalogue, rows: np.ndarray, vectors: np.ndarray
) -> tuple[str | None, list[str], float]:
    """The attribute whose values neighbours share most above chance, weighed by the share the map can colour."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    neighbours = np.argpartition(-similarity, min(10, len(rows) - 1), axis=1)[:, :10]
    best: tuple[float, str | None, list[str], float] = (-1.0, None, [""] * len(rows), 0.0)
    for name, column in catalogue.attributes.items():
        values = [str(value) for value in column[rows]]
        known = np.array([bool(value) for value in values])
        shown = np.isin(values, plots.most_common(values))
        if len(set(values)) < 2 or known.mean() < 0.5:
            continue
        _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
        purity = float((codes[neighbours] == codes[:, None])[known].mean())
        gain = float((purity - np.square(counts / len(rows)).sum()) * shown.mean())
        if gain > best[0]:
            best = (gain, name, values, purity)
    return best[1:]
