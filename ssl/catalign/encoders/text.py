"""Text encoders: BERT from a config, or any pretrained checkpoint of the same kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from catalign.data.catalogue import Catalogue
from catalign.data.text import Vocabulary
from catalign.encoders.base import Encoded, Encoder, by_length
from catalign.errors import CatalignError
from catalign.registry import register


@register("encoder", "bert")
class TextEncoder(Encoder):
    """A bidirectional transformer over word pieces (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    Reads ``tokens`` (B, L), ``token_mask`` (B, L) and, when a batch has them, ``segments`` (B, L).

    Args:
        vocabulary: The catalogue's vocabulary.
        layers: Transformer blocks.
        width: Width D of the features; feed-forward layers are four times as wide.
        heads: Attention heads; D must be a multiple.
        dropout: Share of activations and attention weights dropped. Zero suits training from scratch for few epochs
            (Geiping & Goldstein 2023, https://arxiv.org/abs/2212.14034).
        pooling: ``mean`` over real tokens, or the ``cls`` token.
        max_positions: Longest sequence, special tokens included.
        buckets: Rows are encoded in so many groups of like length, each padded to its own longest row: a batch of
            titles with one description in it costs little more than the titles. 1 for compiled encoders.
        attention: ``sdpa``, or ``eager``, the same in plain matrix products: faster for short texts on a CPU.
        pretrained: A Hugging Face name or folder. Its sizes replace those above, and ``data.tokenizer`` must name the
            same checkpoint. Only safetensors are read, and no remote code runs.

    Raises:
        CatalignError: Heads do not divide the width, or the checkpoint cannot be read or has another vocabulary.
    """

    modality = "text"
    keys = ("tokens", "token_mask", "segments")

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        layers: int = 3,
        width: int = 192,
        heads: int = 3,
        dropout: float = 0.0,
        pooling: Literal["mean", "cls"] = "mean",
        max_positions: int = 512,
        buckets: int = 8,
        attention: Literal["sdpa", "eager"] = "sdpa",
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.pooling, self.buckets = pooling, buckets
        if pretrained is not None:
            self.model = load_pretrained(pretrained, vocabulary.size, dropout)
        elif width % heads:
            raise CatalignError(f"config key encoder.text: width {width} is not a multiple of heads {heads}")
        else:
            config = BertConfig(
                vocab_size=vocabulary.size,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
                max_position_embeddings=max_positions,
                pad_token_id=vocabulary.pad,
            )
            self.model = BertModel(config, add_pooling_layer=False)
        self.model.set_attn_implementation(attention)
        self.width = self.model.config.hidden_size
        self._has_segments = getattr(self.model.config, "type_vocab_size", 0) > 1

    @classmethod
    def of(cls, catalogue: Catalogue, **options: Any) -> Self:
        """An encoder over a catalogue's vocabulary."""
        return cls(catalogue.vocabulary, **options)

    @property
    def embedding_weight(self) -> Tensor:
        """(V, D) input embeddings, which a vocabulary decoder may be tied to."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight[: self.vocabulary.size]  # checkpoints pad their vocabulary to a multiple of 8 or 64

    def forward(self, batch: Mapping[str, Tensor]) -> Encoded:
        """Encode ``tokens``; padding is attended to by nothing and pooled by nothing."""

        def encode(rows: Tensor, length: int) -> Tensor:
            return self._encode({key: batch[key][rows, :length] for key in self.keys if key in batch})

        mask = batch["token_mask"]
        tokens = by_length(mask, self.buckets, encode)
        return Encoded(tokens=tokens, pooled=self.pool(tokens, mask), mask=mask)

    def _encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        segments = {"token_type_ids": batch["segments"]} if self._has_segments and "segments" in batch else {}
        mask = batch["token_mask"].long()
        hidden: Tensor = self.model(input_ids=batch["tokens"], attention_mask=mask, **segments).last_hidden_state
        return hidden

    def pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """One vector per row: (B, L, D) features and (B, L) bool -> (B, D)."""
        if self.pooling == "cls":
            return tokens[:, 0]
        weights = mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)


def load_pretrained(name: str, vocabulary_size: int, dropout: float) -> Any:
    """A transformer from the Hugging Face hub or a folder.

    Raises:
        CatalignError: It cannot be read, or its vocabulary is smaller than the catalogue's.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
        model = AutoModel.from_pretrained(
            name,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError) as error:
        raise CatalignError(
            f"config key encoder.text.pretrained: {name!r} cannot be loaded: {str(error).splitlines()[0]}",
            "give a hub name or a folder with config.json and model.safetensors",
        ) from None
    known = model.get_input_embeddings().num_embeddings
    if known < vocabulary_size:
        raise CatalignError(
            f"encoder.text.pretrained={name} knows {known} tokens, the catalogue's vocabulary has {vocabulary_size}",
            f"set data.tokenizer={name}",
        )
    model.pooler = None  # pooling is ours; weights that get no gradient stop distributed training
    return model
