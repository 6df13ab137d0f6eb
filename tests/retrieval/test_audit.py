from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from catalign.data.store import EmbeddingStore
from catalign.errors import CatalignError
from catalign.reporting.audit import terminal, write_audit
from catalign.retrieval.audit import Audit
from catalign.retrieval.suspicion import combined, tails, telling_attribute
from toy_products import NO_PHOTO, NO_TEXT


@pytest.fixture(scope="module")
def swapped(toys, retriever_of, tmp_path_factory):
    """The toys with the photos of a green and a blue product swapped, and p30 a copy of p0."""
    vectors = {name: np.array(toys.store[name]) for name in toys.store.names}
    vectors["image"][[31, 32]] = vectors["image"][[32, 31]]
    for name in ("text", "image"):
        vectors[name][30] = vectors[name][0]
    present = {name: toys.store.present(name) for name in vectors}
    store = EmbeddingStore.write(tmp_path_factory.mktemp("swapped") / "store", toys.store.ids, vectors, present)
    return retriever_of(toys.catalogue, store, toys.embedder)


def test_a_planted_swap_is_found_first(swapped):
    first, second = Audit(swapped, category="colour").suspects(2)
    assert {first.id, second.id} == {"p31", "p32"}
    for suspect in (first, second):
        assert any(reason.startswith("photo and title disagree") for reason in suspect.reasons)


def test_a_duplicate_is_named(swapped):
    suspects = {suspect.id: suspect for suspect in Audit(swapped, category="colour").suspects(60)}
    assert any("near-duplicate of p0 " in reason for reason in suspects["p30"].reasons)
    assert not any("near-duplicate" in reason for reason in suspects["p31"].reasons)


def test_a_strange_category_and_title_are_told(toys, monkeypatch):
    values = np.array(toys.catalogue.attributes["colour"])
    values[33] = "Blue"  # a red product
    monkeypatch.setitem(toys.catalogue.attributes, "colour", values)
    place = 34 - 1  # one before it has no title
    audit = Audit(toys, lambda titles: np.where(np.arange(len(titles)) == place, 9.0, 1.0), "colour")
    found = {suspect.id: suspect for suspect in audit.suspects(60)}
    assert any(reason == "colour is Blue, but 100% of its neighbours vote for Red" for reason in found["p33"].reasons)
    assert "improbable title (9.0 nats per token, usually 1.0)" in found["p34"].reasons
    assert np.isnan(found[NO_TEXT].signals["likelihood"])
    assert np.isnan(found[NO_PHOTO].signals["agreement"])


def test_what_is_written(swapped, tmp_path):
    suspects = Audit(swapped, category="colour").suspects(3)
    suspects[0] = replace(suspects[0], reasons=["<b>bold</b>"])
    page, table = write_audit(swapped.catalogue, suspects, tmp_path)
    html = page.read_text()
    assert html.count("data:image/") == 3
    assert "<b>bold" not in html
    with table.open() as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == [suspect.id for suspect in suspects]
    assert {"suspicion", "reasons", "agreement", "distance", "category", "duplicate"} < set(lines[0])
    assert terminal(suspects).row_count == 3


def test_an_unknown_category_is_told(toys):
    with pytest.raises(CatalignError, match="did you mean 'colour'"):
        Audit(toys, category="color")


def test_tails_by_hand():
    scores = np.array([3.0, 1.0, 2.0, 2.0, np.nan])
    assert np.array_equal(tails(scores), [1 / 4, 1.0, 3 / 4, 3 / 4, np.nan], equal_nan=True)
    sound = np.array([0.0, 2.0, np.nan])
    assert np.array_equal(tails(scores, sound), [1 / 3, 2 / 3, 2 / 3, 2 / 3, np.nan], equal_nan=True)
    total = combined([np.array([0.5, np.nan]), np.array([0.1, 0.2])])
    assert total == pytest.approx([-np.log(0.1), -np.log(0.2)])


def test_the_telling_attribute_is_shared_by_neighbours():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 4, 200)
    vectors = np.eye(4)[kind] + 0.1 * rng.normal(size=(200, 4))
    attributes = {"noise": rng.integers(0, 4, 200).astype(str), "kind": kind.astype(str), "one": np.full(200, "x")}
    assert telling_attribute(attributes, vectors) == "kind"
    assert telling_attribute({"one": attributes["one"]}, vectors) is None
