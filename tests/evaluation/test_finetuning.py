"""Fine-tuning on toy encoders: what it learns, from what, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from catalign.evaluation import finetuning
from catalign.evaluation.attributes import attributes
from catalign.evaluation.base import Skipped
from catalign.evaluation.classification import NONE
from catalign.evaluation.finetuning import Labeller, Products, finetune
from catalign.pipeline import context_of
from catalign.testing.toys import toy_batch, toy_catalogue, toy_encoders
from catalign.training.model import Model

COUNT = 240


def train(monkeypatch, **options: Any) -> None:
    monkeypatch.setattr(finetuning, "TRAINING", finetuning.TRAINING.model_copy(update=options))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    encoders = toy_encoders("conv")
    return Model(encoders, torch.nn.ModuleDict(), {})


@pytest.fixture
def catalogue(monkeypatch):
    """Photos are black, grey or white; 40 tokens of a text are read."""
    train(monkeypatch, epochs=8, batch_size=16, lr=3e-3)
    made = toy_catalogue(COUNT)
    made.images[:] = (np.arange(COUNT) % 3 * 120).astype(np.uint8)[:, None, None, None]
    made.max_tokens = 40
    return made


def products(kind: np.ndarray) -> dict[str, Products]:
    """The kind is the text's one word and the photo's brightness."""
    drawn = np.random.default_rng(3)
    rows = {split: np.sort(drawn.choice(COUNT, 80, replace=False)) for split in ("train", "val", "test")}
    return {split: Products(some, [f"word{kind[row]}" for row in some], kind[some]) for split, some in rows.items()}


def test_each_input_learns_what_it_says(model, catalogue):
    kind = np.arange(COUNT) % 3
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    some = products(kind)
    some["test"] = some["test"]._replace(texts=["zzz", *some["test"].texts[1:]])
    catalogue.has_image[some["test"].rows[:2]] = False
    answers = finetune(model, catalogue, some, 3, ["text", "image", "fused"])
    for name in ("text", "image", "fused"):
        probabilities, has = answers["test"][name]
        assert probabilities.sum(1) == pytest.approx(np.ones(80), abs=1e-5)
        assert (probabilities.argmax(1) == some["test"].labels)[has].mean() > 0.9, name
    assert [answers["test"][name][1].tolist()[:3] for name in ("text", "image", "fused")] == [
        [False, True, True],
        [False, False, True],
        [False, True, True],
    ]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items()), "a copy is trained"


def test_both_together_are_the_sum_of_what_is_there(model):
    labeller = Labeller({name: model.encoders[name] for name in ("text", "image")}, 4).eval()
    batch = toy_batch(4)
    batch["has_text"] = torch.tensor([True, False, True, False])
    batch["has_image"] = torch.tensor([True, True, False, False])
    found = labeller(batch, ["text", "image", "fused"])
    (text, _), (image, _), (fused, has) = (found[name] for name in ("text", "image", "fused"))
    assert torch.equal(fused, text + image)
    assert not text[1].any()
    assert not image[2].any()
    assert has.tolist() == [True, True, True, False]


def test_the_epoch_that_val_prefers_is_kept(model, catalogue, monkeypatch):
    train(monkeypatch, epochs=3)
    some, right = products(np.arange(COUNT) % 3), [0.2, 0.9, 0.5]  # shares of val after each epoch
    steps: list[float] = []

    def answer(self, reader, classes):
        steps.append(float(self.labeller.heads["text"].weight.detach().abs().sum()))
        labels = reader.products.labels
        told = np.where(np.arange(80) < right[min(len(steps), 3) - 1] * 80, labels, (labels + 1) % 3)
        return {"text": (np.eye(3)[told], np.ones(80, bool))}

    monkeypatch.setattr(finetuning._Learner, "answer", answer)
    finetune(model, catalogue, some, 3, ["text"])
    first, second, third, val, test = steps
    assert val == test == second
    assert first != second != third


def test_the_seed_decides(model, catalogue, monkeypatch):
    train(monkeypatch, epochs=1)
    some = products(np.arange(COUNT) % 3)
    one, same, other = (
        finetune(model, catalogue, some, 3, ["fused"], seed=seed, precision="bf16")["test"]["fused"][0]
        for seed in (0, 0, 1)
    )
    assert (one == same).all()
    assert not (one == other).all()


def test_val_may_hold_classes_that_train_lacks_or_nothing(model, catalogue, monkeypatch):
    train(monkeypatch, epochs=1)
    some = products(np.arange(COUNT) % 3)
    some["val"] = some["val"]._replace(labels=np.full(80, NONE))
    assert finetune(model, catalogue, some, 3, ["image"])["val"]["image"][0].shape == (80, 3)
    some["val"] = Products(np.zeros(0, int), [], np.zeros(0, int))
    probabilities, has = finetune(model, catalogue, some, 3, ["text", "image", "fused"])["val"]["fused"]
    assert probabilities.shape == (0, 3)
    assert has.shape == (0,)


def test_attributes_by_fine_tuning(tiny_run, monkeypatch):
    train(monkeypatch, epochs=1)
    context = context_of(tiny_run)
    options = {"attributes": ["colour"], "min_count": 2, "max_train": 64}
    (result,) = attributes(context, methods=["linear", "finetune"], **options)
    for name in ("text", "image", "fused"):
        key = f"colour/{name}/finetune/accuracy"
        assert f"{key}/minus/untrained" in result.significance["ours"]
    key = "colour/text/finetune/accuracy"
    (alone,) = attributes(context, inputs=["text"], methods=["finetune"], **options)
    assert alone.metrics[key] == result.metrics[key], "what is asked for changes nothing"
    (frozen,) = attributes(context, **options)
    assert frozen.protocol["id"] == result.protocol["id"]
    assert not any("finetune" in key for key in frozen.metrics)
    context.run = None
    with pytest.raises(Skipped, match="needs a run's model"):
        attributes(context, methods=["finetune"], **options)
