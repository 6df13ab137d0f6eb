"""The text encoder: padding, pooling, segments, pretrained checkpoints."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertModel

from catalign.data.text import Vocabulary
from catalign.encoders import TextEncoder
from catalign.errors import CatalignError


@pytest.fixture
def vocabulary():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    return Vocabulary(tokenizer, pad=0, unk=1, cls=2, sep=3, mask=4)


@pytest.fixture
def encoder(vocabulary):
    torch.manual_seed(0)
    return TextEncoder(vocabulary, layers=2, width=16, heads=2).eval()


TOKENS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
BATCH = {"tokens": TOKENS, "token_mask": TOKENS != 0}


def test_shapes(encoder):
    encoded = encoder(BATCH)
    assert encoded.tokens.shape == (2, 5, 16)
    assert encoded.pooled.shape == (2, 16)
    assert torch.equal(encoded.mask, BATCH["token_mask"])
    assert encoder.embedding_weight.shape == (13, 16)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing(encoder, pooling):
    encoder.pooling = pooling
    alone = {"tokens": TOKENS[1:, :3], "token_mask": torch.ones(1, 3, dtype=torch.bool)}
    torch.testing.assert_close(encoder(BATCH).pooled[1:], encoder(alone).pooled)
    expected = encoder(alone).tokens[:, 0] if pooling == "cls" else encoder(alone).tokens.mean(1)
    torch.testing.assert_close(encoder(BATCH).pooled[1:], expected)


def test_encoding_rows_of_like_length_together_changes_nothing(encoder):
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(2, 20, (64,), generator=generator)
    mask = torch.arange(20) < ends[:, None]
    mask[:, 1] = False  # a hidden token is no end
    tokens = torch.randint(5, 13, (64, 20), generator=generator) * mask
    batch = {"tokens": tokens, "token_mask": mask, "segments": (torch.arange(20) > 5).long().expand(64, -1)}
    grouped = encoder(batch)
    encoder.buckets = 1
    whole = encoder(batch)
    torch.testing.assert_close(grouped.pooled, whole.pooled)
    torch.testing.assert_close(grouped.tokens[mask], whole.tokens[mask])


def test_eager_attention_is_the_same(encoder, vocabulary):
    eager = TextEncoder(vocabulary, layers=2, width=16, heads=2, attention="eager").eval()
    eager.load_state_dict(encoder.state_dict())
    assert eager.model.config._attn_implementation == "eager"
    torch.testing.assert_close(eager(BATCH).pooled, encoder(BATCH).pooled)


def test_segments_are_read(encoder):
    segments = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    changed = (encoder({**BATCH, "segments": segments}).pooled - encoder(BATCH).pooled).abs().amax(1)
    assert changed[0] > 1e-3
    assert changed[1] < 1e-6


def test_every_weight_gets_a_gradient(encoder):
    encoded = encoder(BATCH)
    (encoded.pooled.sum() + encoded.tokens.square().sum()).backward()
    assert not [name for name, weight in encoder.named_parameters() if weight.grad is None]


def checkpoint(folder, size):
    config = BertConfig(
        vocab_size=size, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    return model


def test_pretrained_from_a_folder(vocabulary, tmp_path):
    model = checkpoint(tmp_path, size=16)  # three rows more than the vocabulary, as padded checkpoints have
    encoder = TextEncoder(vocabulary, pretrained=str(tmp_path)).eval()
    assert encoder.width == 24
    assert encoder.embedding_weight.shape == (13, 24)
    expected = model(input_ids=TOKENS, attention_mask=BATCH["token_mask"].long()).last_hidden_state
    torch.testing.assert_close(encoder(BATCH).tokens[0], expected[0])
    assert not [name for name, _ in encoder.named_parameters() if "pooler" in name]


def test_pretrained_with_another_vocabulary_is_refused(vocabulary, tmp_path):
    checkpoint(tmp_path, size=9)
    with pytest.raises(CatalignError, match=r"knows 9 tokens.*has 13\n.*data.tokenizer="):
        TextEncoder(vocabulary, pretrained=str(tmp_path))


def test_pretrained_that_is_not_there(vocabulary, tmp_path):
    with pytest.raises(CatalignError, match="cannot be loaded"):
        TextEncoder(vocabulary, pretrained=str(tmp_path / "nothing"))


def test_pickled_weights_are_refused(vocabulary, tmp_path):
    model = checkpoint(tmp_path, size=16)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CatalignError, match="cannot be loaded"):
        TextEncoder(vocabulary, pretrained=str(tmp_path))


def test_heads_must_divide_the_width(vocabulary):
    with pytest.raises(CatalignError, match="width 100 is not a multiple of heads 3"):
        TextEncoder(vocabulary, width=100, heads=3)
