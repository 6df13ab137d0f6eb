"""The behaviour encoder: what it sees, how a history stands for a user, and products that nobody bought yet."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from catalign.data.interactions import Histories
from catalign.data.store import EmbeddingStore
from catalign.encoders import SequenceEncoder
from catalign.errors import CatalignError

IDS = [f"p{number}" for number in range(9)]


class Toy(SimpleNamespace):
    def __len__(self):
        return 9


@pytest.fixture
def catalogue():
    torch.manual_seed(0)
    histories = Histories.of([("ann", [0, 1, 2, 3, 4]), ("bob", [4, 5, 6, 7, 8])])  # 7 and 8 are held out, 3 and 4 too
    return Toy(name="toy", ids=IDS, histories=histories)


@pytest.fixture
def store(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    has = np.arange(9) != 6
    EmbeddingStore.write(tmp_path / "store", IDS[::-1], {"text": vectors[::-1]}, {"text": has[::-1]})
    return str(tmp_path / "store"), vectors, has


def encoder(catalogue, **options):
    return SequenceEncoder(catalogue, **{"width": 16, "max_length": 6, "dropout": 0.0, **options}).eval()


def rows(*histories):
    longest = max(map(len, histories))
    padded = torch.tensor([[*history, *[1] * (longest - len(history))] for history in histories])
    return {
        "history": padded,
        "history_mask": torch.arange(longest) < torch.tensor([[len(history)] for history in histories]),
    }


def test_a_causal_state_knows_nothing_of_what_comes_after(catalogue):
    model = encoder(catalogue)
    first, other = model(rows([0, 1, 2, 3])), model(rows([0, 1, 2, 7]))
    torch.testing.assert_close(first.tokens[0, :3], other.tokens[0, :3])
    assert not torch.allclose(first.tokens[0, 3], other.tokens[0, 3])
    torch.testing.assert_close(first.pooled, first.tokens[:, 3])


def test_a_bidirectional_state_is_the_mask_token_after_the_end(catalogue):
    model = encoder(catalogue, causal=False)
    whole, explicit = model(rows([0, 1, 2])), encoder(catalogue, causal=False)
    explicit.load_state_dict(model.state_dict())
    states = explicit._encode(torch.tensor([[0, 1, 2, model.mask_row]]), torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(whole.pooled, states[:, 3])
    torch.testing.assert_close(whole.tokens, states[:, :3])
    assert not torch.allclose(whole.tokens[0, 0], model(rows([0, 1, 5])).tokens[0, 0])


@pytest.mark.parametrize("causal", [True, False])
def test_neither_padding_nor_company_nor_buckets_change_a_row(catalogue, causal):
    histories = [[0, 1], [5], [2, 3, 4, 5], [7, 8, 0], *([number % 9] * (1 + number % 5) for number in range(20))]
    model = encoder(catalogue, causal=causal)
    together = model(rows(*histories))
    model.buckets = 1
    torch.testing.assert_close(model(rows(*histories)).pooled, together.pooled)
    for row, history in enumerate(histories):
        alone = model(rows(history))
        torch.testing.assert_close(together.pooled[row], alone.pooled[0])
        torch.testing.assert_close(together.tokens[row, : len(history)], alone.tokens[0])
        assert together.mask[row].sum() == len(history)


@pytest.mark.parametrize("causal", [True, False])
def test_long_histories_are_cut_to_their_latest_products(catalogue, causal):
    model = encoder(catalogue, causal=causal)
    long, short = [8, 7, 6, 5, 4, 3, 2, 1, 0], [3, 2]
    encoded = model(rows(long, short))
    torch.testing.assert_close(encoded.pooled[0], model(rows(long[-6:])).pooled[0])
    torch.testing.assert_close(encoded.pooled[1], model(rows(short)).pooled[0])


def test_content_is_read_by_id_and_standardised(catalogue, store):
    path, vectors, has = store
    model = encoder(catalogue, items="content", content=path, content_name="text")
    expected = (vectors - vectors[has].mean(0)) / vectors[has].std(0)
    torch.testing.assert_close(model.features[has], torch.from_numpy(expected[has]), rtol=1e-4, atol=1e-4)
    assert model.known.tolist() == has.tolist()
    torch.testing.assert_close(model.vectors(torch.tensor([2]))[0], model.project(model.features[2]))
    assert model.vectors(torch.tensor([[0, 9]])).shape == (1, 2, 16)


def test_a_product_that_nobody_bought_is_its_content_alone(catalogue, store):
    model = encoder(catalogue, items="both", content=store[0], content_name="text")
    assert model.trained.tolist() == [True, True, True, False, True, True, True, False, False]
    torch.testing.assert_close(model.vectors(torch.tensor(7)), model.project(model.features[7]))
    torch.testing.assert_close(model.vectors(torch.tensor(0)), model.ids.weight[0] + model.project(model.features[0]))
    torch.testing.assert_close(model.vectors(torch.tensor(9)), model.ids.weight[9])
    assert model.known.all()
    assert encoder(catalogue).known.tolist() == model.trained.tolist()


def test_ids_are_dropped_in_training_only(catalogue, store):
    model = encoder(catalogue, items="both", content=store[0], content_name="text", id_dropout=0.999999)
    content = model.project(model.features[:3])
    assert not torch.allclose(model.vectors(torch.arange(3)), content)
    model.train()
    torch.testing.assert_close(model.vectors(torch.arange(3)), content)
    torch.testing.assert_close(model.vectors(torch.tensor(9)), model.ids.weight[9])


def test_mistakes_are_sentences(catalogue, store, tmp_path):
    with pytest.raises(CatalignError, match="has no histories"):
        encoder(Toy(name="toy", ids=IDS, histories=None))
    with pytest.raises(CatalignError, match="not a multiple of heads"):
        encoder(catalogue, width=15)
    with pytest.raises(CatalignError, match="did you mean 'text'"):
        encoder(catalogue, items="content", content=store[0], content_name="texts")
    catalogue.ids = [*IDS[:8], "new"]
    with pytest.raises(CatalignError, match="lacks 1 products, such as 'new'"):
        encoder(catalogue, items="content", content=store[0], content_name="text")
