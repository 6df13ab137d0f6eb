"""Alignment losses against loops over pairs of rows."""

import math

import pytest
import torch
import torch.nn.functional as F

from catalign import registry
from catalign.errors import CatalignError
from catalign.objectives import scores
from catalign.objectives.base import Forward
from catalign.objectives.text_views import random_run

GROUP = torch.tensor([0, 0, 1, 2, 2, 2, 3])
VALID = torch.tensor([True, True, True, False, True, True, True])


def contrastive(encoders, **options):
    return registry.build("objective", "contrastive", encoders, **options)


def test_infonce_matches_a_loop():
    logits = torch.randn(7, 7, dtype=torch.float64) * 3
    losses = []
    for i in range(7):
        if VALID[i]:
            candidates = [j for j in range(7) if VALID[j]]
            log_p = F.log_softmax(logits[i, candidates], 0)
            positives = [n for n, j in enumerate(candidates) if GROUP[i] == GROUP[j]]
            losses.append(-sum(log_p[n] for n in positives) / len(positives))
    loss = scores.infonce(logits, scores.matches(GROUP, VALID), VALID)
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_infonce_of_distinct_rows_is_clips():
    logits, index = torch.randn(5, 5), torch.arange(5)
    everything = torch.ones(5, dtype=torch.bool)
    loss = scores.infonce(logits, scores.matches(index, everything), everything)
    torch.testing.assert_close(loss, F.cross_entropy(logits, index))


def test_sigmoid_matches_a_loop():
    logits = torch.randn(7, 7, dtype=torch.float64) * 3
    total = 0.0
    for i in range(7):
        for j in range(7):
            if VALID[i] and VALID[j]:
                sign = 1 if GROUP[i] == GROUP[j] else -1
                total -= math.log(1 / (1 + math.exp(-sign * float(logits[i, j]))))
    loss = scores.sigmoid(logits, scores.matches(GROUP, VALID), VALID)
    assert float(loss) == pytest.approx(total / int(VALID.sum()))


def test_any_positive_on_top_counts_and_absent_rows_do_not():
    logits = torch.full((7, 7), -1.0)
    logits[:, 3] = 9  # absent: it must not win
    logits[0, 1] = logits[1, 0] = logits[2, 0] = 5
    for row in (4, 5, 6):
        logits[row, row] = 5
    assert scores.top1(logits, scores.matches(GROUP, VALID), VALID) == pytest.approx(5 / 6)


@pytest.mark.parametrize(("loss", "temperature"), [("infonce", 0.07), ("sigmoid", 0.1)])
def test_learned_scale_starts_as_in_the_paper(encoders, batch, seeded, loss, temperature):
    objective = contrastive(encoders, loss=loss)
    outputs = objective(Forward(encoders, batch), batch)
    assert outputs["temperature"].item() == pytest.approx(temperature)
    outputs["loss"].backward()
    assert objective.log_scale.grad != 0
    if loss == "sigmoid":
        assert objective.bias.item() == -10
        assert objective.bias.grad != 0


def test_scale_never_exceeds_100(encoders, batch):
    objective = contrastive(encoders)
    objective.log_scale.data.fill_(9.0)
    outputs = objective(Forward(encoders, batch), batch)
    assert outputs["temperature"].item() == pytest.approx(0.01)
    outputs["loss"].backward()
    assert objective.log_scale.grad != 0, "it can come down again"


def test_positives_by_group_or_by_row(encoders, batch):
    batch["group"] = torch.zeros(8, dtype=torch.long)
    by_group, by_row = (
        contrastive(encoders, positives=key)(Forward(encoders, batch), batch) for key in ("group", "index")
    )
    assert by_group["accuracy"] == 1
    assert by_row["accuracy"] < 1


def test_augments_in_training_only(encoders, batch, seeded):
    objective = contrastive(encoders, drop_tokens=0.5)
    changed = objective.prepare(batch, seeded())
    assert changed["image"].is_floating_point()
    assert changed["image"].shape[-2:] == (32, 24)
    ordinary = batch["tokens"] >= 5
    assert torch.equal(changed["token_mask"] & ~ordinary, batch["token_mask"] & ~ordinary), "specials stay"
    assert (changed["token_mask"] & ordinary).any(1).all(), "no text loses all of its words"
    dropped = (batch["token_mask"] & ~changed["token_mask"]).sum() / ordinary.sum()
    assert 0.3 < dropped < 0.7
    clean = objective.eval().prepare(batch, seeded())
    assert clean["image"] is batch["image"]
    assert clean["token_mask"] is batch["token_mask"]


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_embeddings_have_length_one_and_one_width(encoders, head):
    objective = contrastive(encoders, head=head, width=16)
    for modality in ("text", "image"):
        embedded = objective.embed(modality, torch.randn(3, encoders[modality].width))
        assert embedded.shape == (3, 16)
        torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    other = torch.randn(2, 3)
    assert objective.embed("behaviour", other) is other


def test_all_pairs_of_three_modalities(encoders, encoders_of, batch):
    encoders["third"] = encoders_of("conv")["image"]
    objective = contrastive(encoders, modalities=("text", "image", "third"))
    outputs = objective(Forward(encoders, batch), batch)
    pairs = []
    for pair in (("text", "image"), ("text", "third"), ("image", "third")):
        two = contrastive(encoders, modalities=pair)
        two.load_state_dict({k: v for k, v in objective.state_dict().items() if k in two.state_dict()})
        pairs.append(two.eval()(Forward(encoders.eval(), batch), batch)["loss"])
    objective.eval()
    torch.testing.assert_close(objective(Forward(encoders, batch), batch)["loss"], torch.stack(pairs).mean())
    assert torch.isfinite(outputs["loss"])


def test_one_modality_is_refused(encoders):
    with pytest.raises(CatalignError, match="two or more"):
        contrastive(encoders, modalities=("text",))
    with pytest.raises(CatalignError, match="two or more"):
        contrastive(encoders, modalities=("image",), texts_weight=1.0)


def test_text_alone_looks_for_its_second_text(encoders, batch):
    alone = contrastive(encoders, modalities=("text",), texts_weight=0.7).eval()
    with pytest.raises(CatalignError, match="give the stage a second_text"):
        alone(Forward(encoders, batch), batch)
    second = {"tokens": batch["tokens"].roll(1, 0), "token_mask": batch["token_mask"].roll(1, 0)}
    batch = {**batch, **{f"second_{key}": value for key, value in second.items()}}
    batch["has_second"] = batch["has_text"].roll(1, 0)
    outputs = alone(Forward(encoders, batch), batch)
    views = [alone.embed("text", encoders["text"]({**batch, **view}).pooled) for view in ({}, second)]
    valid = batch["has_second"] & batch["has_text"]
    expected, accuracy = scores.two_way(*views, alone.log_scale.exp(), key=batch["group"], valid=valid)
    torch.testing.assert_close(outputs["loss"], expected)
    assert outputs["texts_accuracy"] == accuracy
    assert "accuracy" not in outputs


def test_random_runs_are_runs_of_the_text(seeded):
    tokens = torch.tensor([[2, 10, 11, 12, 13, 3, 0], [2, 20, 3, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0]])
    seen, generator = set(), seeded()
    for _ in range(200):
        cut, mask = random_run(tokens, tokens != 0, 3, generator)
        texts = [row[kept].tolist() for row, kept in zip(cut, mask)]
        assert all(text[0] == 2 and text[-1] == 3 for text in texts)
        assert texts[1:] == [[2, 20, 3], [2, 3]], "nothing to cut"
        seen.add(tuple(texts[0][1:-1]))
    runs = {tuple(range(a, b)) for a in range(10, 14) for b in range(a + 1, min(a + 4, 15)) if b <= 14}
    assert seen == runs


def test_second_text_is_scored_as_the_text_is(encoders, batch, seeded):
    objective = contrastive(encoders, second_weight=0.5).eval()
    plain = objective(Forward(encoders.eval(), batch), batch)
    second = {**batch, "second_tokens": batch["tokens"], "second_token_mask": batch["token_mask"]}
    second["has_second"] = batch["has_text"]
    same = objective(Forward(encoders, second), second)
    torch.testing.assert_close(same["loss"], plain["loss"])
    assert same["second_accuracy"] == plain["accuracy"]
    second["second_tokens"] = batch["tokens"].roll(1, 0)
    second["second_token_mask"] = batch["token_mask"].roll(1, 0)
    swapped = {**batch, "tokens": second["second_tokens"], "token_mask": second["second_token_mask"]}
    other = objective(Forward(encoders, swapped), swapped)["loss"]
    mixed = objective(Forward(encoders, second), second)["loss"]
    torch.testing.assert_close(mixed, (plain["loss"] + 0.5 * other) / 1.5)
    second["has_second"] = torch.zeros(8, dtype=torch.bool)
    torch.testing.assert_close(objective(Forward(encoders, second), second)["loss"], plain["loss"] / 1.5)


def test_the_two_texts_of_a_product_find_each_other_where_weighted(encoders, batch, seeded):
    objective, plain = (contrastive(encoders, texts_weight=weight).eval() for weight in (0.25, 0.0))
    plain.load_state_dict(objective.state_dict())
    encoders.eval()
    batch = {**batch, "second_tokens": batch["tokens"].roll(1, 0), "second_token_mask": batch["token_mask"].roll(1, 0)}
    batch["has_second"] = batch["has_text"].roll(1, 0)
    without, outputs = (task(Forward(encoders, batch), batch) for task in (plain, objective))
    assert "texts_accuracy" not in without
    first = objective.embed("text", Forward(encoders, batch)("text").pooled)
    valid = batch["has_second"] & batch["has_text"]
    texts, _ = scores.two_way(
        first.roll(1, 0), first, objective.log_scale.exp(), key=batch["group"], valid=valid, score=scores.infonce
    )
    expected = (without["loss"] * 1.5 + 0.25 * texts) / 1.75
    torch.testing.assert_close(outputs["loss"], expected)
    assert 0 <= outputs["texts_accuracy"] <= 1
