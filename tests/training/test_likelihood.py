from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from catalign.training.likelihood import PASSES, language_model


def plain(objective, ids):
    """Mean nats of one text's tokens, a third of them hidden at a time."""
    vocabulary, encoder = objective.encoder("text").vocabulary, objective.encoder("text")
    tokens = [vocabulary.cls, *ids, vocabulary.sep]
    nats = []
    for offset in range(PASSES):
        places = [p for p in range(offset, len(tokens), PASSES) if tokens[p] not in vocabulary.specials]
        hidden = torch.tensor([[vocabulary.mask if p in places else int(token) for p, token in enumerate(tokens)]])
        features = encoder({"tokens": hidden, "token_mask": torch.ones_like(hidden, dtype=torch.bool)}).tokens[0]
        for place in places:
            logits = objective.logits(features[place][None], encoder.embedding_weight)
            nats.append(float(F.cross_entropy(logits, torch.tensor([int(tokens[place])]))))
    return np.mean(nats)


@torch.inference_mode()
def test_improbability_is_its_definition_whatever_the_padding(tiny_run):
    model = tiny_run.model("text")
    texts = [*tiny_run.catalogue().text()[:5], "", tiny_run.catalogue().text("description")[3]]
    found = language_model(tiny_run)(texts)
    encoded = tiny_run.catalogue().vocabulary.encode(texts)
    expected = [plain(model.tasks()["mlm"], ids) if len(ids) else np.nan for ids in encoded]
    assert found == pytest.approx(expected, abs=1e-4, nan_ok=True)
    assert np.isnan(found[5])


def test_a_run_without_the_objective_has_none(tiny_run, monkeypatch):
    monkeypatch.setattr(type(tiny_run), "stages", {"image": tiny_run.stage_path("image")})
    assert language_model(tiny_run) is None
