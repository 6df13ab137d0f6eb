from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from catalign.data.batches import BatchLoader, gather
from catalign.data.text import Ragged, train_wordpiece
from catalign.errors import CatalignError

N = 23
LENGTHS = np.random.default_rng(0).integers(0, 6, (2, N))
LENGTHS[:, 5] = 0  # a product without any text
LENGTHS[0, 6], LENGTHS[1, 6] = 0, 4  # one without the primary text


@pytest.fixture
def catalogue():
    rng = np.random.default_rng(1)
    tokens = [Ragged.of(rng.integers(10 + 40 * field, 50 + 40 * field, n) for n in LENGTHS[field]) for field in (0, 1)]

    class Catalogue(SimpleNamespace):
        def __len__(self):
            return N

    return Catalogue(
        images=rng.integers(0, 256, (N, 6, 4, 3), dtype=np.uint8),
        has_image=rng.random(N) < 0.7,
        has_text=LENGTHS[0] > 0,
        fields={"title": 0.75, "description": 0.25},
        tokens=dict(zip(("title", "description"), tokens, strict=True)),
        groups=np.arange(N) // 2,
        vocabulary=train_wordpiece(["a b c d e f g h"] * 2, 200),
    )


def loader(catalogue, rows=None, modalities=("image", "text"), **given):
    options = {"batch_size": 4, "steps": 12, "seed": 3, **given}
    return BatchLoader(catalogue, np.arange(N) if rows is None else rows, modalities, **options)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_second_text_comes_from_its_own_fields(catalogue):
    plain, both = loader(catalogue), loader(catalogue, second_fields={"description": 1})
    for first, second in zip(plain, both, strict=True):
        assert same(first, {key: second[key] for key in first}), "the first text is what it was"
        expected = gather(catalogue, second["index"].numpy(), ["text"], np.ones(4, dtype=int))
        assert all(torch.equal(second[f"second_{key}"], expected[key]) for key in ("tokens", "token_mask"))
        assert torch.equal(second["has_second"], expected["has_text"])
    assert "second_tokens" not in next(iter(loader(catalogue, modalities=("image",), second_fields={"title": 1})))


def test_gather_reads_what_is_there(catalogue):
    rows, fields = np.array([7, 5, 2, 6, 7]), np.array([0, 1, 1, 1, 1])
    batch = gather(catalogue, rows, ("image", "text"), fields)
    v = catalogue.vocabulary
    assert batch["image"].shape == (5, 3, 6, 4)
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    for place, (row, field) in enumerate(zip(rows, fields, strict=True)):
        assert (batch["image"][place].permute(1, 2, 0).numpy() == catalogue.images[row]).all()
        own = [v.cls, *catalogue.tokens[["title", "description"][field]][row].tolist(), v.sep]
        assert batch["tokens"][place][batch["token_mask"][place]].tolist() == own
        assert (batch["tokens"][place][~batch["token_mask"][place]] == v.pad).all()
        assert batch["has_text"][place] == (len(own) > 2)
    assert batch["tokens"].shape[1] == batch["token_mask"].sum(1).max()
    assert batch["index"].tolist() == rows.tolist()
    assert batch["group"].tolist() == [3, 2, 1, 3, 3]
    assert batch["has_image"].tolist() == catalogue.has_image[rows].tolist()


def test_only_the_named_modalities_are_read(catalogue):
    del catalogue.images
    batch = gather(catalogue, np.arange(3), ("text",))
    assert batch.keys() == {"index", "group", "tokens", "token_mask", "has_text"}
    with pytest.raises(CatalignError, match="'text'"):
        gather(catalogue, np.arange(3), ("texts",))


def test_features_stand_for_the_raw_input(catalogue):
    features = {"image": torch.randn(N, 5)}
    batch = next(iter(loader(catalogue, features=features)))
    assert "image" not in batch
    assert "tokens" in batch
    assert torch.equal(batch["image_features"], features["image"][batch["index"]])
    assert batch["has_image"].tolist() == catalogue.has_image[batch["index"].numpy()].tolist()
    with pytest.raises(CatalignError, match="23 products"):
        next(iter(loader(catalogue, features={"image": torch.randn(N + 1, 5)})))


def test_a_batch_is_a_function_of_seed_and_step(catalogue):
    batches = list(loader(catalogue))
    again = loader(catalogue)
    assert all(same(again.batch(step), batches[step]) for step in (11, 0, 5, 6))
    other = loader(catalogue, seed=4)
    assert not same(other.batch(0), batches[0])


def test_an_epoch_has_no_row_twice(catalogue):
    batches = list(loader(catalogue, rows=np.arange(2, N)))
    epochs = [np.concatenate([b["index"] for b in batches[start : start + 5]]) for start in (0, 5)]
    for epoch in epochs:
        assert len(set(epoch)) == 20
        assert epoch.min() >= 2
    assert epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_out_the_batches_of_one(catalogue, shuffle):
    whole = loader(catalogue, batch_size=6, shuffle=shuffle)
    parts = [loader(catalogue, batch_size=2, rank=rank, world=3, shuffle=shuffle) for rank in range(3)]
    for step in range(whole.steps):
        batch, shares = whole.batch(step), [part.batch(step) for part in parts]
        assert torch.equal(torch.cat([share["index"] for share in shares]), batch["index"])
        texts = [row[mask].tolist() for s in shares for row, mask in zip(s["tokens"], s["token_mask"], strict=True)]
        assert texts == [row[mask].tolist() for row, mask in zip(batch["tokens"], batch["token_mask"], strict=True)]


def test_order_of_rows_without_shuffling(catalogue):
    batches = list(loader(catalogue, shuffle=False, rows=np.array([9, 3, 4, 1, 0]), batch_size=2, steps=3))
    assert [batch["index"].tolist() for batch in batches] == [[9, 3], [4, 1], [9, 3]]


def test_stop_and_go_on(catalogue):
    whole = list(loader(catalogue))
    assert len(whole) == len(loader(catalogue)) == 12
    first = loader(catalogue)
    stream = iter(first)
    for _ in range(5):
        next(stream)
    state = first.state_dict()
    second = loader(catalogue)
    second.load_state_dict(state)
    assert second.state_dict() == state == {"step": 5}
    rest = list(second)
    assert len(rest) == 7
    assert all(same(a, b) for a, b in zip(rest, whole[5:], strict=True))
    assert len(list(second)) == 12  # the state is for the next iteration only
    later = loader(catalogue, start=4)
    assert len(later) == 8
    assert same(next(iter(later)), whole[4])


def test_fields_are_drawn_by_weight_among_those_not_empty(catalogue):
    drawn = {row: Counter() for row in range(N)}
    for batch in loader(catalogue, modalities=("text",), batch_size=N, steps=400):
        for row, tokens in zip(batch["index"].tolist(), batch["tokens"], strict=True):
            drawn[row][1 if tokens[1] >= 50 else 0 if tokens[1] >= 10 else None] += 1
    both = [row for row in range(N) if LENGTHS[:, row].all()]
    share = sum(drawn[row][0] for row in both) / (400 * len(both))
    assert abs(share - 0.75) < 0.03
    assert drawn[5] == {None: 400}
    assert drawn[6] == {1: 400}


def test_other_weights(catalogue):
    batches = list(loader(catalogue, modalities=("text",), fields={"description": 1.0}))
    tokens = torch.cat([batch["tokens"][:, 1:][batch["token_mask"][:, 1:]] for batch in batches])
    assert (tokens[tokens != catalogue.vocabulary.sep] >= 50).all()
    for batch in batches:  # a row without a description stays empty, whatever its title
        assert batch["has_text"].tolist() == (LENGTHS[1][batch["index"].numpy()] > 0).tolist()
    with pytest.raises(CatalignError, match="'title'"):
        loader(catalogue, fields={"titel": 1.0})
    with pytest.raises(CatalignError, match="positive weight"):
        loader(catalogue, fields={"title": 0.0})


def test_too_large_a_batch_names_the_largest(catalogue):
    with pytest.raises(CatalignError, match="batch_size to 7 or less"):
        loader(catalogue, batch_size=8, world=3)
