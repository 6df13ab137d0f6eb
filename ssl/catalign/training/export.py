"""Hand a run's encoders to the libraries they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from transformers import PreTrainedTokenizerFast

from catalign.encoders.image import ImageEncoder
from catalign.encoders.text import TextEncoder
from catalign.training.model import WEIGHTS
from catalign.training.run import Run


def export(run: Run, folder: Path) -> list[Path]:
    """Write each encoder as its own library reads it, and all weights with the projections.

    ``text/`` loads with ``transformers.AutoModel.from_pretrained`` and ``AutoTokenizer``; ``image/`` with
    ``timm.create_model("local-dir:…/image")``; ``weights.safetensors`` holds encoders and objective heads together.

    Args:
        run: A run with a finished stage; the last one is exported.
        folder: Where to write.

    Returns:
        The paths written.

    Raises:
        CatalignError: The run has no finished stage.
    """
    model = run.model()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for modality, encoder in model.encoders.items():
        path = folder / modality
        if isinstance(encoder, TextEncoder):
            _export_text(encoder, path)
        elif isinstance(encoder, ImageEncoder):
            _export_image(encoder, path, run.config.encoder[modality].options.get("kwargs", {}))
        else:
            continue
        written.append(path)
    model.save(folder / WEIGHTS)
    return [*written, folder / WEIGHTS]


def _export_text(encoder: TextEncoder, path: Path) -> None:
    encoder.model.save_pretrained(path)
    vocabulary = encoder.vocabulary
    names = {
        f"{role}_token": vocabulary.tokenizer.id_to_token(getattr(vocabulary, role))
        for role in ("pad", "unk", "cls", "sep", "mask")
    }
    PreTrainedTokenizerFast(tokenizer_object=vocabulary.tokenizer, **names).save_pretrained(path)


def _export_image(encoder: ImageEncoder, path: Path, arguments: dict[str, Any]) -> None:
    backbone = encoder.model.vit if encoder.is_vit else encoder.model
    fixed = {"img_size": list(encoder.size), "global_pool": ""} if encoder.is_vit else {}
    data = {
        "input_size": [3, *encoder.size],
        "mean": encoder.mean.flatten().tolist(),
        "std": encoder.std.flatten().tolist(),
    }
    save_for_hf(
        backbone,
        str(path),
        model_args={"num_classes": 0, **fixed, **arguments},
        data_config=data,
        safe_serialization=True,
    )
