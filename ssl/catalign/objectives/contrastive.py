"""Cross-modal alignment: the modalities of one product close together, those of different products apart."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from catalign.data.batches import SECOND
from catalign.errors import CatalignError
from catalign.objectives.base import Batch, Forward, Objective, full_precision, present, unit
from catalign.objectives.scores import Matches, infonce, sigmoid, two_way
from catalign.objectives.text_views import drop_tokens, random_run
from catalign.objectives.views import MILD, Views, augment
from catalign.registry import register

SECOND_TOKENS, SECOND_MASK = f"{SECOND}tokens", f"{SECOND}token_mask"
MAX_SCALE = math.log(100)  # CLIP's limit: beyond it training becomes unstable


@register("objective", "contrastive")
class Contrastive(Objective):
    """Align encoders so that a product's text finds its image and back.

    When to use: as the last stage, on encoders pretrained alone or from scratch. It makes the space that embeddings,
    fusion and search live in.

    Every pair of modalities present is scored over the rows that have both. With ``loss: infonce`` (CLIP, Radford et
    al. 2021, https://arxiv.org/abs/2103.00020) each row looks for its positives among all rows, in both directions,
    at a learned temperature. With ``loss: sigmoid`` (SigLIP, Zhai et al. 2023, https://arxiv.org/abs/2303.15343) each
    pair of rows is a yes-or-no question. Rows of one ``group`` are the same product: all are positives of each other,
    and the InfoNCE target is uniform over them (Khosla et al. 2020, https://arxiv.org/abs/2004.11362). Candidates are
    gathered from all ranks. For batches larger than memory see ``trainer.gradient_chunks``.

    A stage that sets ``second_text`` gives each product a second text (a description, the catalogue's own fields). In
    training it is cut to a random run of its tokens, single words among them, so that a bare word finds products too;
    it is scored as the text is. With ``texts_weight`` the two texts of a product must find each other too, so that a
    word finds products by their titles as well as by their photos. A catalogue without photos has that pair alone:
    ``modalities: [text]``.

    Args:
        encoders: Needs those of ``modalities``.
        modalities: The modalities to align, two or more; or text alone, with its second text.
        width: Width of the common space.
        head: The projection into it: ``linear``, or ``mlp`` with one hidden layer of the encoder's width.
        loss: ``infonce`` or ``sigmoid``.
        temperature: Where the learned temperature starts; null for the papers' .07 (infonce) or .1 (sigmoid).
        positives: ``group``: same product; ``index``: the same row alone.
        views: Augmentation of training images; null for none.
        drop_tokens: Share of ordinary tokens hidden from the text encoder in training.
        second_weight: Weight of the second text's pairs with other modalities, those of the text itself having 1.
        texts_weight: Weight of the pair of text and second text.
        second_span: Tokens of the second text kept at most; how many is drawn anew for each product.

    Returns of ``forward``:
        ``loss``, the weighted mean over pairs; ``accuracy``, share of rows whose best candidate is a positive, the
        mean over directions; ``temperature``; with a second text ``second_accuracy`` and, where weighted,
        ``texts_accuracy``, of the pairs that it is in.

    Raises:
        CatalignError: Fewer than two modalities, or a missing encoder, or text alone without a second one.
    """

    modalities: tuple[str, ...] = ("text", "image")
    stream = "contrastive"

    def __init__(
        self,
        encoders: nn.ModuleDict,
        *,
        modalities: tuple[str, ...] = ("text", "image"),
        width: int = 256,
        head: Literal["linear", "mlp"] = "linear",
        loss: Literal["infonce", "sigmoid"] = "infonce",
        temperature: float | None = None,
        positives: Literal["group", "index"] = "group",
        views: Views | None = MILD,
        drop_tokens: float = 0.0,
        second_weight: float = 0.5,
        texts_weight: float = 0.0,
        second_span: int = 16,
    ) -> None:
        self.modalities = tuple(modalities)
        super().__init__(encoders)
        if len(set(self.modalities)) < 2 and not (self.modalities == ("text",) and texts_weight):
            raise CatalignError(
                f"contrastive: modalities {list(modalities)} are not two or more",
                "give [text, image]; or [text] with texts_weight above 0, in a stage with a second_text",
            )
        self.loss, self.positives, self.views = loss, positives, views
        self.drop_tokens, self.second_span = drop_tokens, second_span
        self.second_weight, self.texts_weight = second_weight, texts_weight
        self.heads = nn.ModuleDict(
            {name: projection(self.encoder(name).width, width, head) for name in self.modalities}
        )
        start = temperature or {"infonce": 0.07, "sigmoid": 0.1}[loss]
        self.log_scale = nn.Parameter(torch.tensor(-math.log(start)))
        if loss == "sigmoid":
            self.bias = nn.Parameter(torch.tensor(-10.0))

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Augment images and hide tokens, in training only."""
        batch = dict(batch)
        if self.training and self.views and "image" in batch and "image" in self.modalities:
            image = self.encoder("image")
            batch["image"] = image.normalise(augment(batch["image"], image.size, self.views, generator))
        if self.training and self.drop_tokens and "tokens" in batch and "text" in self.modalities:
            specials = self.encoder("text").vocabulary.specials
            mask = drop_tokens(batch["tokens"], batch["token_mask"], specials, self.drop_tokens, generator)
            batch["token_mask"] = mask
        if self.training and SECOND_TOKENS in batch:
            tokens, mask = batch[SECOND_TOKENS], batch[SECOND_MASK]
            batch[SECOND_TOKENS], batch[SECOND_MASK] = random_run(tokens, mask, self.second_span, generator)
        return batch

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Score every pair of modalities."""
        if self.training:
            with torch.no_grad():
                self.log_scale.clamp_(max=MAX_SCALE)
        embedded = {name: self.embed(name, encode(name).pooled) for name in self.modalities}
        weights = dict.fromkeys(combinations(self.modalities, 2), 1.0)
        kinds = dict.fromkeys(weights, "accuracy")
        if SECOND_TOKENS in batch and "text" in self.modalities:
            embedded["second"] = self.embed("text", encode("text", SECOND).pooled)
            for other in self.modalities:
                pair = ("second", other)
                weights[pair] = self.texts_weight if other == "text" else self.second_weight
                kinds[pair] = "texts_accuracy" if other == "text" else "second_accuracy"
        if not weights:
            raise CatalignError("contrastive: text alone has nothing to find", "give the stage a second_text")
        scored = {pair: self._score(embedded, batch, pair) for pair, weight in weights.items() if weight}
        losses = torch.stack([weights[pair] * loss for pair, (loss, _) in scored.items()])
        outputs = {"loss": losses.sum() / sum(weights.values()), "temperature": (-self.log_scale.detach()).exp()}
        for kind in dict.fromkeys(kinds[pair] for pair in scored):
            outputs[kind] = torch.stack([scored[pair][1] for pair in scored if kinds[pair] == kind]).mean()
        return outputs

    def _score(self, embedded: dict[str, Tensor], batch: Batch, pair: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of a pair of modalities, the mean over both directions."""
        score = infonce if self.loss == "infonce" else self._sigmoid
        first, second = (embedded[name] for name in pair)
        valid = present(batch, pair[0]) & present(batch, pair[1])
        with full_precision(batch["group"].device):
            return two_way(first, second, self.log_scale.exp(), key=batch[self.positives], valid=valid, score=score)

    def _sigmoid(self, logits: Tensor, match: Matches, valid: Tensor) -> Tensor:
        return sigmoid(logits + self.bias, match, valid)

    def embed(self, modality: str, pooled: Tensor) -> Tensor:
        """(B, D) pooled -> (B, width) of length 1, at least in fp32; pooled itself where the modality has no head."""
        return unit(self.heads[modality](pooled)) if modality in self.heads else pooled


def projection(width: int, out: int, kind: str) -> nn.Module:
    """From an encoder's width to the common space."""
    if kind == "linear":
        return nn.Linear(width, out, bias=False)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out, bias=False))
