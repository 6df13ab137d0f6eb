"""From products and queries to embeddings: the one place where a trained model meets a catalogue."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from catalign.data import images
from catalign.data.catalogue import Catalogue
from catalign.data.history_batches import BEHAVIOUR, pad_histories
from catalign.data.store import FEATURES, EmbeddingStore
from catalign.encoders.base import Encoder
from catalign.encoders.sequence import SequenceEncoder
from catalign.errors import CatalignError
from catalign.training.features import pooled_features
from catalign.training.model import Model

if TYPE_CHECKING:
    from catalign.training.run import Run


class Embedder:
    """A model that turns texts and photos into vectors of length 1.

    Args:
        model: Encoders and the heads that project their output.
        catalogue: The products it was trained on: queries are tokenised, fitted and cut as they were.
        precision: ``"bf16"`` is faster on devices that have it, and less exact.
        **manifest: What a store should say about the model, besides the hash of its weights.
    """

    def __init__(self, model: Model, catalogue: Catalogue, *, precision: str = "32", **manifest: Any) -> None:
        self.model, self.vocabulary, self.precision = model.eval(), catalogue.vocabulary, precision
        self.image_size: tuple[int, int] = catalogue.images.shape[1:3]
        self.max_tokens = catalogue.max_tokens
        self.device = next(model.parameters()).device
        self.manifest = manifest

    @classmethod
    def from_run(cls, run: Run, model: Model | None = None, *, precision: str = "32") -> Embedder:
        """The embedder of a run, on a GPU if there is one.

        Args:
            run: The run.
            model: The model to embed with; the run's last finished stage if None (``run.untrained()`` for a baseline).
            precision: ``"32"`` or ``"bf16"``.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = (run.model() if model is None else model).to(device)
        return cls(chosen, run.catalogue(), precision=precision, config=run.config.name, seed=run.config.seed)

    def text(self, texts: Sequence[str], batch_size: int = 512) -> np.ndarray:
        """Embed texts.

        Returns:
            (n, D) float32 of length 1.

        Raises:
            CatalignError: The model has no text encoder, or a text has no word that it knows.
        """
        self._needs("text")
        framed, known = self.vocabulary.framed(texts, self.max_tokens)
        for text, has in zip(texts, known, strict=True):
            if not has:
                raise CatalignError(
                    f"text query {text[:60]!r} tokenises to nothing that the model knows",
                    "describe the product in words, such as 'red running shoes'",
                )
        batches = []
        for start in range(0, len(texts), batch_size):
            rows = np.arange(start, min(start + batch_size, len(texts)))
            padded, mask = framed.pad(rows, fill=self.vocabulary.pad)
            batches.append({"tokens": torch.from_numpy(padded), "token_mask": torch.from_numpy(mask)})
        return self._embed("text", batches)

    def knows(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) bool, whether a text has a word that the model knows: :meth:`text` refuses one that has none."""
        return self.vocabulary.framed(texts, self.max_tokens)[1]

    def images(self, photos: Sequence[Any], batch_size: int = 512) -> np.ndarray:
        """Embed photos.

        Args:
            photos: Paths, encoded bytes, PIL images, or (H, W, 3) uint8 arrays.
            batch_size: Photos per batch.

        Returns:
            (n, D) float32 of length 1.

        Raises:
            CatalignError: The model has no image encoder, or a photo is missing, empty or not an image.
        """
        return self._embed("image", self._photos(photos, batch_size))

    def image_features(self, photos: Sequence[Any], batch_size: int = 512) -> np.ndarray:
        """The image encoder's own features of photos, before any head: (n, D) float32; see :meth:`images`."""
        return torch.cat(list(self._pooled("image", self._photos(photos, batch_size)))).cpu().numpy()

    def _photos(self, photos: Sequence[Any], batch_size: int) -> list[dict[str, Tensor]]:
        self._needs("image")
        batches = []
        for start in range(0, len(photos), batch_size):
            pixels = np.stack([self._pixels(photo) for photo in photos[start : start + batch_size]])
            batches.append({"image": torch.from_numpy(pixels).permute(0, 3, 1, 2)})
        return batches

    def _pixels(self, photo: Any) -> np.ndarray:
        if isinstance(photo, str | Path) and Path(photo).is_dir():
            raise CatalignError(f"image query {photo} is a folder", "name one photo in it")
        try:
            return images.load(photo, self.image_size)
        except images.BadImageError as error:
            shown = photo if isinstance(photo, str | Path) else type(photo).__name__
            raise CatalignError(
                f"image query {shown} is not an image that can be read: {error}",
                "give the path of a JPEG, PNG, WebP, GIF, BMP or TIFF photo",
            ) from None

    def histories(self, histories: Sequence[np.ndarray], batch_size: int = 512) -> np.ndarray:
        """Embed what users did.

        Args:
            histories: n arrays of product rows, oldest first; see :meth:`Catalogue.row`.
            batch_size: Histories per batch.

        Returns:
            (n, D) float32 of length 1.

        Raises:
            CatalignError: The model has no behaviour encoder, or a history is empty or not of the catalogue.
        """
        self._needs(BEHAVIOUR)
        encoder = cast(SequenceEncoder, self.model.encoders[BEHAVIOUR])
        for number, history in enumerate(histories):
            if not len(history) or history.min() < 0 or history.max() >= encoder.mask_row:
                raise CatalignError(
                    f"history {number} is empty or names rows that are no products: {list(history)[:5]}",
                    f"give product rows from 0 to {encoder.mask_row - 1}",
                )
        parts = (histories[start : start + batch_size] for start in range(0, len(histories), batch_size))
        return self._embed(BEHAVIOUR, [pad_histories(part, encoder.max_length) for part in parts])

    def _needs(self, modality: str) -> None:
        if modality not in self.model.encoders:
            known = ", ".join(self.model.encoders)
            log = "train one on a log: data.interactions.path=FILE"
            remedy = log if modality == BEHAVIOUR else f"query it with {known}"
            raise CatalignError(f"this model has no {modality} encoder, only {known}", remedy)

    def _embed(self, modality: str, batches: list[dict[str, Tensor]]) -> np.ndarray:
        return np.concatenate([self._project(modality, pooled) for pooled in self._pooled(modality, batches)])

    @torch.inference_mode()
    def _pooled(self, modality: str, batches: list[dict[str, Tensor]]) -> Iterator[Tensor]:
        """The encoder's pooled output (B, D) of every batch, in fp32."""
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                placed = {key: value.to(self.device) for key, value in batch.items()}
                pooled = self.model.encoders[modality](placed).pooled
            yield pooled.float()

    @torch.inference_mode()
    def _project(self, modality: str, pooled: Tensor) -> np.ndarray:
        embedded = self.model.embed(modality, pooled.to(self.device))
        return functional.normalize(embedded.float(), dim=1).cpu().numpy()

    def catalogue(
        self, catalogue: Catalogue, path: str | Path, batch_size: int = 512, progress: bool = True, **manifest: Any
    ) -> EmbeddingStore:
        """Embed every product by its primary text and its photo; memory does not grow with the catalogue.

        Args:
            catalogue: The products.
            path: The store's folder.
            batch_size: Products per batch.
            progress: Show a progress bar.
            **manifest: Further entries of the store's manifest.

        Returns:
            A store of ``text``, ``image`` (aligned), ``behaviour`` (item vectors, if objectives score them) and
            ``text_features``, … (pooled), as far as the model has encoders for them.

        Raises:
            CatalignError: The model has no embedding of products at all.
        """
        has = {"text": catalogue.has_text, "image": catalogue.has_image}
        encoders = cast(dict[str, Encoder], self.model.encoders)
        if BEHAVIOUR in encoders:
            has[BEHAVIOUR] = cast(SequenceEncoder, encoders[BEHAVIOUR]).known.cpu().numpy()
        modalities = [modality for modality in has if modality in encoders and self.model.describes_products(modality)]
        names = [*modalities, *(f"{modality}{FEATURES}" for modality in modalities)]
        manifest = {**self.manifest, **manifest, "weights": weights_digest(self.model), "data": catalogue.fingerprint}
        with EmbeddingStore.writing(path, catalogue.ids, names, has, **manifest) as writer:
            for modality in modalities:
                batches = pooled_features(encoders[modality], catalogue, modality, batch_size)
                total = -(-len(catalogue) // batch_size)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    for pooled in track(batches, f"embedding {modality}", total, disable=not progress):
                        writer.append(f"{modality}{FEATURES}", pooled.float().numpy())
                        writer.append(modality, self._project(modality, pooled.float()))
        return EmbeddingStore.open(path, verify=False)


def weights_digest(model: torch.nn.Module) -> str:
    """Short SHA-256 of all of a model's weights and their names."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:12]
