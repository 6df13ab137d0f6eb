"""Masked language modelling: what is hidden, and logits at hidden positions only."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from catalign import registry
from catalign.errors import CatalignError
from catalign.objectives.base import Forward


def mlm(encoders, **options):
    return registry.build("objective", "mlm", encoders, **options)


@pytest.fixture
def texts():
    """2000 rows of 3 to 20 tokens in [CLS] … [SEP], some unknown, padded to 24."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(3, 21, (2000, 1), generator=generator)
    tokens = torch.randint(5, 46, (2000, 24), generator=generator)
    tokens[::10, 2] = 1
    position = torch.arange(24)
    tokens = tokens.masked_fill(position == 0, 2).masked_fill(position == lengths - 1, 3)
    return {"tokens": tokens.masked_fill(position >= lengths, 0), "token_mask": position < lengths}


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_share_hidden(encoders, texts, seeded, rate, whole_word):
    prepared = mlm(encoders, rate=rate, whole_word=whole_word).prepare(texts, seeded())
    chosen, tokens = prepared["mlm_chosen"], texts["tokens"]
    ordinary = texts["token_mask"] & ~torch.isin(tokens, torch.arange(5))
    assert not (chosen & ~ordinary).any(), "a special token or padding was chosen"
    assert (chosen.any(1) == ordinary.any(1)).all(), "a text without any hidden token"
    long = ordinary.sum(1) >= 14
    share = chosen[long].sum() / ordinary[long].sum()
    assert abs(share - rate) < (0.015 if not whole_word else 0.06)  # the last word may exceed the quota


def test_of_the_chosen_80_become_mask_10_random_10_stay(encoders, texts, seeded):
    prepared = mlm(encoders, rate=0.3).prepare(texts, seeded())
    before, after = (prepared[key][prepared["mlm_chosen"]] for key in ("mlm_tokens", "tokens"))
    masked, kept = (after == 4).float().mean(), (after == before).float().mean()
    assert abs(masked - 0.8) < 0.02
    assert abs(kept - 0.1 - 0.1 / 41) < 0.015
    assert after[after != 4].min() >= 5, "a random token is never special"
    untouched = ~prepared["mlm_chosen"]
    assert torch.equal(prepared["tokens"][untouched], texts["tokens"][untouched])


def test_whole_words_are_hidden_whole(encoders, texts, seeded, vocabulary):
    chosen = mlm(encoders, whole_word=True).prepare(texts, seeded())["mlm_chosen"]
    tokens = texts["tokens"]
    goes_on = torch.from_numpy(vocabulary.continuation)[tokens]
    ordinary = texts["token_mask"] & ~torch.isin(tokens, torch.arange(5))
    same_word = goes_on[:, 1:] & ordinary[:, 1:] & ordinary[:, :-1]
    assert same_word.any()
    assert (chosen[:, 1:] == chosen[:, :-1])[same_word].all()
    pieces = mlm(encoders).prepare(texts, seeded())["mlm_chosen"]
    assert (pieces[:, 1:] != pieces[:, :-1])[same_word].any(), "without the option words are split"


def test_logits_at_hidden_positions_equal_those_of_all_positions(encoders, batch, seeded):
    objective = mlm(encoders)
    prepared = objective.prepare(batch, seeded())
    encode = Forward(encoders, prepared)
    outputs = objective(encode, prepared)
    everywhere = objective.logits(encode("text").tokens, encoders["text"].embedding_weight)
    labels = prepared["mlm_tokens"].masked_fill(~prepared["mlm_chosen"], -100)
    torch.testing.assert_close(outputs["loss"], F.cross_entropy(everywhere.flatten(0, 1), labels.flatten()))
    right = (everywhere.argmax(-1) == labels)[prepared["mlm_chosen"]].float().mean()
    torch.testing.assert_close(outputs["accuracy"], right)


def test_decoder_is_tied_to_the_embedding(encoders, batch, seeded):
    objective = mlm(encoders)
    vocabulary_sized = [n for n, p in objective.named_parameters() if p.ndim == 2 and len(p) == 46]
    assert not vocabulary_sized
    prepared = objective.prepare(batch, seeded())
    objective(Forward(encoders, prepared), prepared)["loss"].backward()
    gradient = encoders["text"].model.get_input_embeddings().weight.grad
    absent = [token for token in range(5, 46) if token not in set(prepared["tokens"].flatten().tolist())]
    assert gradient[absent].abs().sum(1).min() > 0, "tokens that are only candidates learn too"


def test_unigram_loss_is_that_of_counts(encoders, batch, seeded, vocabulary):
    objective = mlm(encoders)
    prepared = objective.prepare(batch, seeded())
    outputs = objective(Forward(encoders, prepared), prepared)
    p = (vocabulary.counts + 1) / (vocabulary.counts + 1).sum()
    hidden = prepared["mlm_tokens"][prepared["mlm_chosen"]].numpy()
    np.testing.assert_allclose(outputs["unigram_loss"].item(), -np.log(p[hidden]).mean(), rtol=1e-5)


def test_a_batch_of_empty_texts_costs_nothing(encoders, seeded):
    empty = {"tokens": torch.tensor([[2, 3]] * 4), "token_mask": torch.ones(4, 2, dtype=torch.bool)}
    objective = mlm(encoders)
    prepared = objective.prepare(empty, seeded())
    outputs = objective(Forward(encoders, prepared), prepared)
    assert outputs["loss"] == 0
    outputs["loss"].backward()


def test_impossible_rate_is_refused(encoders):
    with pytest.raises(CatalignError, match=r"rate 1\.5"):
        mlm(encoders, rate=1.5)
