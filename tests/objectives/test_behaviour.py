"""The tasks on histories against loops over users and positions."""

import math

import pytest
import torch
import torch.nn.functional as F

from catalign import registry
from catalign.errors import CatalignError
from catalign.objectives.attribute_prediction import attribute_values
from catalign.objectives.base import Forward
from catalign.objectives.items import FullSoftmax, hide, shift
from catalign.training.module import _average, _flat


def build(name, encoders, **options):
    return registry.build("objective", name, encoders, **options)


def scores(encoder, state, temperature):
    table = F.normalize(encoder.vectors(torch.arange(10)), dim=1)  # training histories hold products 0 to 9
    return table @ F.normalize(state, dim=0) / temperature


def test_next_item_is_cross_entropy_at_every_position(encoders, batch, seeded):
    encoder, objective = encoders["behaviour"].eval(), build("next_item", encoders, temperature=0.2)
    losses = []
    for history, mask in zip(batch["history"], batch["history_mask"]):
        products = history[mask]
        for stop in range(1, len(products)):
            seen = {"history": products[None, :stop], "history_mask": torch.ones(1, stop, dtype=torch.bool)}
            logits = scores(encoder, encoder(seen).pooled[0], 0.2)
            losses.append(F.cross_entropy(logits, products[stop]))
    prepared = objective.prepare(batch, seeded())
    loss = objective(Forward(encoders, prepared), prepared)["loss"]
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_next_item_is_validated_at_the_last_position(encoders, batch, seeded):
    encoder, objective = encoders["behaviour"].eval(), build("next_item", encoders).eval()
    prepared = objective.prepare(batch, seeded())
    outputs = objective(Forward(encoders, prepared), prepared)
    losses, hits = [], []
    for history, mask in zip(batch["history"], batch["history_mask"]):
        products = history[mask]
        seen = {"history": products[None, :-1], "history_mask": torch.ones(1, len(products) - 1, dtype=torch.bool)}
        logits = scores(encoder, encoder(seen).pooled[0], 0.1)
        losses.append(F.cross_entropy(logits, products[-1]))
        hits.append(float((logits > logits[products[-1]]).sum() < 10))
    torch.testing.assert_close(outputs["loss"], torch.stack(losses).mean())
    assert outputs["hit@10"] == pytest.approx(sum(hits) / len(hits))


def test_targets_that_nobody_trained_count_in_neither_loss_nor_hits(encoders, batch, seeded):
    encoder, objective = encoders["behaviour"].eval(), build("next_item", encoders).eval()
    encoder.trained[:] = False
    prepared = objective.prepare(batch, seeded())
    outputs = _flat("val", {"next_item": objective(Forward(encoders, prepared), prepared)})
    assert _average([outputs]) == {"val/next_item/share": 0}


@pytest.mark.parametrize("step", [1, 3, 100])
def test_full_softmax_has_the_gradients_of_cross_entropy(monkeypatch, step):
    monkeypatch.setattr(FullSoftmax, "ELEMENTS", 5 * step)
    states, table = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (7, 5))
    targets, counts = torch.randint(5, (7,)), torch.arange(7) != 2
    total, better = FullSoftmax.apply(states, table, targets, counts)
    logits = states @ table.T
    expected = F.cross_entropy(logits[counts], targets[counts], reduction="sum")
    torch.testing.assert_close(total, expected)
    assert better.tolist() == [(row > row[target]).sum().item() for row, target in zip(logits, targets)]
    for ours, oracle in zip(
        torch.autograd.grad(total * 3, (states, table)), torch.autograd.grad(expected * 3, (states, table))
    ):
        torch.testing.assert_close(ours, oracle)


@pytest.mark.parametrize("loss", ["bce", "sampled"])
def test_drawn_negatives(encoders, batch, seeded, loss):
    encoder, objective = encoders["behaviour"].eval(), build("next_item", encoders, loss=loss, negatives=5)
    prepared = objective.prepare(batch, seeded())
    encode = Forward(encoders, prepared)
    states = encode("behaviour").tokens[prepared["next_mask"]]
    targets, drawn = prepared["next"][prepared["next_mask"]], prepared["next_drawn"]
    assert len(drawn) == (5 if loss == "sampled" else len(targets))
    expected = []
    for place, (state, target) in enumerate(zip(states, targets)):
        logits = scores(encoder, state, 0.1)
        if loss == "bce":
            expected.append(-F.logsigmoid(logits[target]) - F.logsigmoid(-logits[drawn[place]]))
        else:
            others = torch.stack([logits[other] for other in drawn if other != target])
            expected.append(torch.cat([logits[target][None], others]).logsumexp(0) - logits[target])
    outputs = objective(encode, prepared)
    torch.testing.assert_close(outputs["loss"], torch.stack(expected).mean())
    assert "hit@10" not in outputs
    assert "hit@10" in objective.eval()(encode, prepared)


def test_products_that_nobody_bought_are_nobodys_negatives(encoders):
    rows = build("next_item", encoders).scores.rows
    held_out = {4, 5, 6, 7, 10, 0, 9, 2, 8}  # the last two of each history
    trained = {0, 1, 2, 3} | {3, 4, 5} | {8, 9} | {1, 3, 5, 7} | {2, 4, 6}
    assert set(rows.tolist()) == trained
    assert held_out - trained == {10}


def test_shift_in_training_and_evaluation(batch):
    shifted = shift(batch, True)
    for row, mask in enumerate(batch["history_mask"]):
        products = batch["history"][row][mask]
        chosen = shifted["next_mask"][row]
        assert shifted["history"][row][chosen].tolist() == products[:-1].tolist()
        assert shifted["next"][row][chosen].tolist() == products[1:].tolist()
        gaps = batch["history_time"][row][mask].diff()
        assert shifted["next_gap"][row][chosen].tolist() == gaps.tolist()
    assert shift(batch, False)["next_mask"].sum(1).tolist() == [1] * 8
    assert shift(shifted, True) is shifted


def test_hidden_products(batch, seeded):
    made = hide(batch, 0.5, 12, True, seeded())
    lengths = batch["history_mask"].sum(1)
    assert made["last"].sum(1).tolist() == [1] * 8
    assert (made["history_mask"].sum(1) == lengths - 1).all()
    assert ((made["history"] == 12) == made["hidden"]).all()
    assert 0 < made["hidden"].sum() < made["history_mask"].sum()
    assert not (made["hidden"] & ~made["history_mask"]).any()
    assert not hide(batch, 0.5, 12, False, seeded())["hidden"].any()
    single = {**batch, "history_mask": torch.arange(7).expand(8, 7) < 1}
    assert not hide(single, 0.5, 12, True, seeded())["last"].any()


def test_masked_item_predicts_what_was_hidden_and_what_comes_last(encoders_of, batch, seeded):
    encoders = encoders_of(causal=False)
    encoder, objective = encoders["behaviour"].eval(), build("masked_item", encoders, rate=0.4)
    prepared = objective.prepare(batch, seeded())
    losses = []
    for row in range(8):
        mask, hidden = prepared["history_mask"][row], prepared["hidden"][row]
        encoded = encoder({"history": prepared["history"][row : row + 1][:, mask], "history_mask": mask[mask][None]})
        for place in hidden.nonzero().flatten():
            target = batch["history"][row, place]
            losses.append(F.cross_entropy(scores(encoder, encoded.tokens[0, place], 0.1), target))
        last = batch["history"][row][batch["history_mask"][row]][-1]
        losses.append(F.cross_entropy(scores(encoder, encoded.pooled[0], 0.1), last))
    loss = objective(Forward(encoders, prepared), prepared)["loss"]
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_attribute_values_of_one_and_of_several_per_cell(catalogue):
    values, count = attribute_values(catalogue, ("colour",), None)
    assert count == 3
    assert values[:3].tolist() == [[0], [1], [2]]
    values, count = attribute_values(catalogue, ("tags",), " ")
    assert count == 2
    assert values[:3].tolist() == [[-1, -1], [0, -1], [0, 1]]
    assert attribute_values(catalogue, (), " ")[1] == 5
    with pytest.raises(CatalignError, match="did you mean 'colour'"):
        attribute_values(catalogue, ("color",), None)


def test_attribute_prediction_against_a_loop(encoders_of, batch, seeded):
    encoders = encoders_of(causal=False)
    encoder = encoders["behaviour"].eval()
    objective = build("attribute_prediction", encoders, source="item", attributes=("tags",), separator=" ")
    prepared = objective.prepare(batch, seeded())
    products = batch["history"][batch["history_mask"]].unique()
    losses = []
    for product in products.tolist():
        own = [value for value in objective.values[product].tolist() if value >= 0]
        if own:
            state = F.normalize(objective.head(encoder.vectors(torch.tensor(product))), dim=0)
            log_p = (F.normalize(objective.table.weight, dim=1) @ state / 0.1).log_softmax(0)
            losses.append(-log_p[own].mean())
    torch.testing.assert_close(objective(Forward(encoders, prepared), prepared)["loss"], torch.stack(losses).mean())


def test_a_segment_and_the_rest_make_the_history(encoders_of, batch, seeded):
    encoders = encoders_of(causal=False)
    prepared = build("segment", encoders, share=0.5).prepare(batch, seeded())
    sizes = set()
    for row, mask in enumerate(batch["history_mask"]):
        cut = prepared["history"][row] == 12
        segment = prepared["segment_history"][row][prepared["segment_history_mask"][row]]
        assert batch["history"][row][cut].tolist() == segment.tolist()
        assert cut.nonzero().flatten().diff().tolist() == [1] * (len(segment) - 1)
        assert 1 <= len(segment) <= max(1, int(mask.sum()) // 2)
        assert (prepared["history"][row][~cut] == batch["history"][row][~cut]).all()
        sizes.add(len(segment))
    assert len(sizes) > 1


def test_time_gap_starts_near_its_baseline_and_reads_the_clock(encoders, batch, seeded):
    objective = build("time_gap", encoders)
    prepared = objective.prepare(batch, seeded())
    outputs = objective(Forward(encoders, prepared), prepared)
    target = (torch.log1p(prepared["next_gap"][prepared["next_mask"]].clamp(min=0).float()) - objective.mean) / (
        objective.spread
    )
    expected = F.smooth_l1_loss(torch.zeros_like(target), target)
    torch.testing.assert_close(outputs["baseline_loss"], expected)
    day = 86400  # the toy users' training events are days 1, 4, 9, … of their histories
    gaps = [math.log1p(day * gap) for gap in (3, 5, 7, 3, 5, 3, 3, 5, 7, 3, 5)]
    assert objective.mean == pytest.approx(sum(gaps) / len(gaps))


@pytest.mark.parametrize("name", ["masked_item", "attribute_prediction", "segment"])
def test_tasks_that_look_both_ways_refuse_a_causal_encoder(encoders, name):
    with pytest.raises(CatalignError, match=f"{name}: a causal encoder"):
        build(name, encoders)


@pytest.mark.parametrize("name", ["next_item", "time_gap"])
def test_tasks_that_look_ahead_refuse_a_bidirectional_encoder(encoders_of, name):
    with pytest.raises(CatalignError, match=f"{name}: a bidirectional encoder"):
        build(name, encoders_of(causal=False))


def test_time_gap_needs_times(encoders):
    object.__setattr__(encoders["behaviour"].catalogue.histories, "times", None)
    with pytest.raises(CatalignError, match="have no times"):
        build("time_gap", encoders)
