"""Next-sentence prediction: pairs rebuilt on tensors against a plain loop over lists."""

import torch

from catalign import registry
from catalign.objectives import nsp as N
from catalign.objectives.base import run_objectives


def texts_of(batch, columns=None):
    return [row[mask].tolist() for row, mask in zip(batch["tokens"], batch["token_mask"])]


def plain(texts, ends, valid, partner, longest):
    """The pairs and segments that a loop makes."""
    for row, text in enumerate(texts):
        if not valid[row]:
            yield text, [0] * len(text)
            continue
        other = texts[partner[row]]
        first, second = text[1 : ends[row] + 1], other[ends[partner[row]] + 1 : -1]
        second = second[: longest + 1 - len(first) - 3]
        yield [2, *first, 3, *second, 3], [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_pairs_match_a_loop(encoders, batch_of, seeded):
    batch = batch_of(64)
    batch["tokens"][5] = torch.tensor([2, 7, 8, 3] + [0] * 12)  # a title
    batch["token_mask"][5] = batch["tokens"][5] != 0
    objective = registry.build("objective", "nsp", encoders)
    cuts = objective.cut(batch["tokens"], batch["token_mask"], seeded(1))
    partner = N.swap(cuts.valid, batch["group"], seeded(2))
    tokens, mask, segments = N.join(batch["tokens"], cuts, partner, 3, 0)
    assert not cuts.valid[5]
    assert cuts.valid.sum() > 40
    expected = plain(texts_of(batch), cuts.end.tolist(), cuts.valid.tolist(), partner.tolist(), 16)
    for row, (pair, segment) in enumerate(expected):
        assert tokens[row][mask[row]].tolist() == pair, row
        assert segments[row][mask[row]].tolist() == segment, row
        assert (tokens[row][~mask[row]] == 0).all()
        assert (segments[row][~mask[row]] == 0).all()


def test_cut_is_at_an_inner_sentence_end(encoders, seeded):
    objective = registry.build("objective", "nsp", encoders)
    tokens = torch.tensor([[2, 7, 5, 8, 5, 9, 5, 3], [2, 7, 8, 5, 3, 0, 0, 0], [2, 5, 7, 8, 3, 0, 0, 0]])
    drawn = [objective.cut(tokens, tokens != 0, seeded(n)) for n in range(20)]
    assert {int(cuts.end[0]) for cuts in drawn} == {2, 4}, "any inner end, never the last"
    assert all(cuts.valid.tolist() == [True, False, False] for cuts in drawn)


def test_swap_takes_half_and_never_the_same_product(seeded):
    group = torch.arange(4000) // 2
    valid = torch.arange(4000) % 3 != 0
    partner = N.swap(valid, group, seeded())
    swapped = partner != torch.arange(4000)
    assert abs(swapped[valid].float().mean() - 0.5) < 0.03
    assert not swapped[~valid].any()
    assert valid[partner[swapped]].all()
    assert (group[partner[swapped]] != group[swapped]).all()
    assert len(partner[swapped].unique()) == swapped.sum(), "no second piece is handed out twice"


def test_swap_of_one_product_and_of_none(seeded):
    for valid in (torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)):
        assert N.swap(valid, torch.zeros(4, dtype=torch.long), seeded()).tolist() == [0, 1, 2, 3]


def test_titles_go_on_unchanged_and_cost_nothing(encoders, batch, seeded):
    batch["tokens"] = batch["tokens"].masked_fill(batch["tokens"] == 5, 6)
    objectives = {name: registry.build("objective", name, encoders) for name in ("nsp", "mlm")}
    prepared = objectives["nsp"].prepare(batch, seeded())
    assert texts_of(prepared) == texts_of(batch)
    assert not prepared["segments"].any()
    outputs = run_objectives(objectives, encoders, batch, seeded())
    assert outputs["nsp"]["loss"] == 0
    assert outputs["nsp"]["share"] == 0
    assert outputs["mlm"]["loss"] > 0


def test_labels_say_whose_second_piece_it_is(encoders, batch_of, seeded):
    batch = batch_of(64)
    prepared = registry.build("objective", "nsp", encoders).prepare(batch, seeded())
    for row, text in enumerate(texts_of(batch)):
        pair = prepared["tokens"][row][prepared["token_mask"][row]].tolist()
        own = sorted([*text, 3]) == sorted(pair)
        if prepared["nsp_valid"][row]:
            assert own == bool(prepared["nsp_follows"][row])
