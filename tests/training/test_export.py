"""Each export, loaded by the library it is for as its README.md says, computes what the run does."""

import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from catalign.artifacts import read_json, seal
from catalign.embeddings.extract import Embedder
from catalign.errors import CatalignError
from catalign.training.export import TARGETS, export
from catalign.training.model import WEIGHTS, build_model
from catalign.training.run import Run

TEXTS = ["a red striped dress", "shoes", "blue leather bag with dots, for women; and much else " * 9]


@pytest.fixture
def make_run(tiny_config, tmp_path):
    """A run whose stage was never trained; every weight and statistic is random, so that none can be forgotten."""

    def make(*overrides, stage="recommend"):
        config = tiny_config(tmp_path / "run", "data.source.products=120", *overrides)
        run = Run.create(config)
        model = build_model(config, stage, run.catalogue())
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor += 0.05 * torch.rand_like(tensor)
        model.save(run.stage_path(stage) / WEIGHTS)
        seal(run.stage_path(stage), stage=stage)
        return run

    return make


def photos(run, count=3):
    height, width = run.catalogue().images.shape[1:3]
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def follow(folder, **given):
    """Run the Python of a card and return its names."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(code.replace("FOLDER", str(folder)), given)
    return given


def test_hf_splits_and_encodes_texts_as_the_run_does(make_run, tmp_path):
    run = make_run()
    (folder,) = export(run, tmp_path / "out", ["hf"])
    names = follow(folder)
    encoded = names["tokenizer"](TEXTS, padding=True, truncation=True, return_tensors="pt")
    vocabulary, longest = run.catalogue().vocabulary, run.config.data.max_tokens
    expected = [[vocabulary.cls, *ids, vocabulary.sep] for ids in vocabulary.encode(TEXTS, longest)]
    assert [row[: len(ids)].tolist() for row, ids in zip(encoded["input_ids"], expected)] == expected
    assert len(expected[2]) == longest + 2, "the last text is one that has to be cut"
    batch = {"tokens": encoded["input_ids"], "token_mask": encoded["attention_mask"].bool()}
    ours, mask = run.model().encoders["text"](batch).tokens, batch["token_mask"]
    with torch.no_grad():
        theirs = names["model"](**encoded).last_hidden_state
    torch.testing.assert_close(theirs[mask], ours[mask], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "image",
    [
        ["encoder/image=tiny"],
        ["encoder/image=vit_tiny", "encoder.image.pooling=token"],
        ["encoder/image=vit_tiny", "stages.recommend.encoder.image={size: [32, 48], kwargs: {depth: 2}}"],
    ],
    ids=["resnet", "vit by class token", "vit of another size in its stage"],
)
def test_timm_makes_the_same_features(make_run, tmp_path, image):
    run = make_run(*image)
    (folder,) = export(run, tmp_path / "out", ["timm"])
    encoder = run.model().encoders["image"]
    pixels = np.random.default_rng(0).integers(0, 256, (*encoder.size, 3), dtype=np.uint8)
    names = follow(folder, photo=Image.fromarray(pixels))
    batch = {"image": torch.from_numpy(pixels).permute(2, 0, 1)[None]}
    torch.testing.assert_close(names["features"], encoder(batch).pooled, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "stage"),
    [
        ([], "recommend"),
        (["stages.align.objectives.contrastive.head=mlp", "encoder.text.pooling=cls"], "align"),
        ([], "text"),
    ],
    ids=["linear head", "mlp head", "not aligned"],
)
def test_sentence_transformers_embeds_texts_as_the_run_does(make_run, tmp_path, overrides, stage):
    pytest.importorskip("sentence_transformers", reason="pip install 'catalign[export]'")
    run = make_run(*overrides, stage=stage)
    (folder,) = export(run, tmp_path / "out", ["sentence-transformers"])
    model = follow(folder)["model"]
    np.testing.assert_allclose(model.encode(TEXTS), Embedder.from_run(run).text(TEXTS), atol=1e-5)


def test_onnx_embeds_texts_and_photos_as_the_run_does(make_run, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install 'catalign[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'catalign[export]'")
    vit = ["encoder/image=vit_tiny", "encoder.image.size=[48, 32]", "encoder.image.kwargs.depth=1"]
    run = make_run(*vit, "encoder.text.attention=eager")
    (folder,) = export(run, tmp_path / "out", ["onnx"])
    names, embedder = follow(folder, texts=TEXTS, photos=[*photos(run, 5)]), Embedder.from_run(run)
    np.testing.assert_allclose(names["text_vectors"], embedder.text(TEXTS), atol=1e-5)
    np.testing.assert_allclose(names["image_vectors"], embedder.images([*photos(run, 5)]), atol=1e-5)


def test_safetensors_and_what_stands_beside_them_suffice_to_embed(make_run, tmp_path):
    import timm
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    run = make_run()
    (folder,) = export(run, tmp_path / "out", ["safetensors"])
    how, embedder = follow(folder)["how"], Embedder.from_run(run)

    def unpacked(name):
        return {key.removeprefix("model."): tensor for key, tensor in load_file(folder / f"{name}.safetensors").items()}

    def aligned(pooled, modality):
        assert how[modality]["projected"]
        projected = pooled @ unpacked(f"{modality}_projection")["weight"].T
        return torch.nn.functional.normalize(projected, dim=1).detach().numpy()

    known, weights = how["image"], unpacked("image")
    backbone = timm.create_model(known["encoder"]["model"], num_classes=0, **known["encoder"]["kwargs"]).eval()
    backbone.load_state_dict(weights)
    scale = torch.tensor([known["mean"], known["std"]]).view(2, 3, 1, 1)
    pixels = torch.from_numpy(photos(run)).permute(0, 3, 1, 2) / 255
    assert known["stored_size"] == known["size"] == list(pixels.shape[2:])
    ours = aligned(backbone((pixels - scale[0]) / scale[1]), "image")
    np.testing.assert_allclose(ours, embedder.images([*photos(run)]), atol=1e-5)

    known, weights = how["text"], unpacked("text")
    assert known["pooling"] == "mean"
    encoded = Tokenizer.from_file(str(folder / known["tokenizer"])).encode_batch(TEXTS)
    ids, mask = (torch.tensor([getattr(text, key) for text in encoded]) for key in ("ids", "attention_mask"))
    rows, width = weights["embeddings.word_embeddings.weight"].shape
    config = BertConfig(
        vocab_size=rows,
        hidden_size=width,
        num_hidden_layers=known["encoder"]["layers"],
        num_attention_heads=known["encoder"]["heads"],
        intermediate_size=4 * width,
        max_position_embeddings=known["encoder"]["max_positions"],
    )
    bert = BertModel(config, add_pooling_layer=False).eval()
    bert.load_state_dict(weights)
    hidden = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    np.testing.assert_allclose(aligned(pooled, "text"), embedder.text(TEXTS), atol=1e-5)


def test_by_default_what_needs_no_extra_and_fits_the_stage(make_run, tmp_path):
    run = make_run(stage="image")
    assert [path.name for path in export(run, tmp_path / "out")] == ["timm", "safetensors"]
    assert not read_json(tmp_path / "out" / "safetensors" / "preprocessing.json")["image"]["projected"]
    with pytest.raises(CatalignError, match=r"hf takes an encoder of text, but stage 'image'.* has image alone"):
        export(run, tmp_path / "out", ["timm", "hf"])
    with pytest.raises(CatalignError, match=r"unknown export target 'onxx'\n.*did you mean 'onnx'"):
        export(run, tmp_path / "out", ["onxx"])


def test_a_missing_library_is_named_with_its_extra_and_nothing_is_left(make_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CatalignError, match=r"onnxruntime\n.*catalign\[export\]"):
        export(make_run(), tmp_path / "out", ["onnx"])
    assert not list((tmp_path / "out").iterdir())


def test_cards_tell_what_was_trained_on_what_and_nothing_is_pickled(make_run, tmp_path):
    folders = export(make_run(), tmp_path / "out")
    assert {folder.name for folder in folders} < set(TARGETS)
    for folder in folders:
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "recommend (contrastive)" in card
        assert "training products" in card
        encoders = {"hf": "text", "timm": "image"}.get(folder.name, "behaviour, image, text")
        assert f"\nEncoders of {encoders} (" in card
        assert {path.suffix for path in folder.iterdir()} <= {".json", ".md", ".safetensors"}


def test_a_folder_of_other_files_is_left_alone(tiny_run, tmp_path):
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "mine.txt").write_text("mine")
    with pytest.raises(CatalignError, match="that no export wrote"):
        export(tiny_run, tmp_path, ["safetensors"])
    assert (tmp_path / "safetensors" / "mine.txt").read_text() == "mine"
