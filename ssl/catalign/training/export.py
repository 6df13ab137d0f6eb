"""Hand a run's encoders to other libraries: a function per target, each with a card that says how to load it."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from catalign import __version__
from catalign.artifacts import is_sealed, sealed_folder, write_json
from catalign.encoders.image import ImageEncoder
from catalign.encoders.text import TextEncoder
from catalign.errors import CatalignError, needed, unknown
from catalign.objectives.contrastive import Contrastive
from catalign.training.model import Model
from catalign.training.run import Run

PREPROCESSING, TOKENIZER, EXTRA = "preprocessing.json", "tokenizer.json", "export"

INPUTS: dict[str, dict[str, dict[int, str]]] = {
    "text": {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}},
    "image": {"image": {0: "batch"}},
}
"""What an ONNX file of each modality takes, with the dimensions that are free."""


def export(run: Run, folder: Path, to: Sequence[str] | None = None) -> list[Path]:
    """Write what a run learned, per target in a sealed folder of its name with a README.md that says how to load it.

    Args:
        run: A run with a finished stage; the last one is exported.
        folder: Where to write.
        to: Names of :data:`TARGETS`; ``hf``, ``timm`` and ``safetensors`` by default, as far as they apply.

    Returns:
        The folders written.

    Raises:
        CatalignError: The run has no finished stage, a target is unknown or is for encoders that the stage lacks, or a
            library is not installed.
    """
    model = run.model()
    has = [name for name, target in TARGETS.items() if not target.reads or {*target.reads} & {*model.encoders}]
    chosen = [name for name in ("hf", "timm", "safetensors") if name in has] if to is None else list(dict.fromkeys(to))
    for name in chosen:
        if name not in TARGETS:
            raise unknown("export target", name, TARGETS)
        if name not in has:
            stage, kinds = list(run.stages)[-1], " or ".join(TARGETS[name].reads)
            raise CatalignError(
                f"{name} takes an encoder of {kinds}, but stage {stage!r}, the last one finished, has "
                f"{' and '.join(model.encoders)} alone",
                f"export it to {' '.join(has)}",
            )
    for path in (folder / name for name in chosen):
        if path.is_dir() and any(path.iterdir()) and not is_sealed(path):
            raise CatalignError(f"{path} holds files that no export wrote", "choose another --output")
    for name in chosen:
        with sealed_folder(folder / name, catalign=__version__, weights=run.weights) as temporary:
            usage = TARGETS[name].write(run, model, temporary)
            card = _card(run, model, TARGETS[name], usage)
            (temporary / "README.md").write_text(card, encoding="utf-8")
            for path in temporary.rglob("*.safetensors"):
                path.chmod(0o644)  # the library makes files that only their owner reads
    return [folder / name for name in chosen]


def to_hf(run: Run, model: Model, folder: Path) -> str:
    """The text encoder for ``transformers``, and its tokenizer, which adds special tokens and cuts as in training."""
    encoder = cast(TextEncoder, model.encoders["text"])
    encoder.model.save_pretrained(folder)
    _tokenizer(run, encoder).save_pretrained(folder)
    has_pooler = "add_pooling_layer" in inspect.signature(type(encoder.model)).parameters  # which training leaves out
    options = ", add_pooling_layer=False" if has_pooler else ""
    return f"""from transformers import AutoModel, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("FOLDER"), AutoModel.from_pretrained("FOLDER"{options})
tokens = model(**tokenizer(["red running shoes"], padding=True, truncation=True, return_tensors="pt"))[0]"""


def to_timm(run: Run, model: Model, folder: Path) -> str:
    """The image encoder for ``timm``; its own transform pads with one colour where ours takes the photo's border."""
    encoder, stage = cast(ImageEncoder, model.encoders["image"]), list(run.stages)[-1]
    backbone, arguments = encoder.model, run.config.encoder_of(stage, "image").options.get("kwargs", {})
    if encoder.is_vit:
        backbone = backbone.vit
        backbone.reset_classifier(0, encoder.pooling)
        pooled = {"global_pool": encoder.pooling, "fc_norm": not isinstance(backbone.fc_norm, nn.Identity)}
        arguments = {"img_size": list(encoder.size), **arguments, **pooled}
    data = {
        "input_size": [3, *encoder.size],
        "mean": encoder.mean.flatten().tolist(),
        "std": encoder.std.flatten().tolist(),
        "interpolation": "bilinear",
        "crop_pct": encoder.crop_pct,
        "crop_mode": "border",
    }
    save_for_hf(
        backbone, str(folder), model_args={"num_classes": 0, **arguments}, data_config=data, safe_serialization=True
    )
    height, width = run.catalogue().images.shape[1:3]
    return f"""import timm
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
features = model(transform(photo).unsqueeze(0))
# photo: PIL's, RGB; others than {width} x {height} are padded black"""


def to_sentence_transformers(run: Run, model: Model, folder: Path) -> str:
    """The text encoder with the projection of its alignment, if it has one: a run's text embeddings."""
    library = needed("sentence_transformers", EXTRA)
    modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    encoder = cast(TextEncoder, model.encoders["text"])
    with TemporaryDirectory() as loaded:  # the library builds a transformer from a folder only
        to_hf(run, model, Path(loaded))
        parts = [modules.Transformer(loaded), modules.Pooling(encoder.width, encoder.pooling)]
    head = _head(model, "text")
    layers = [] if head is None else [*head] if isinstance(head, nn.Sequential) else [head]
    for linear, activation in zip_longest(layers[::2], layers[1::2], fillvalue=nn.Identity()):
        dense = modules.Dense(linear.in_features, linear.out_features, linear.bias is not None, activation)
        dense.linear.load_state_dict(linear.state_dict())
        parts.append(dense)
    library.SentenceTransformer(modules=[*parts, modules.Normalize()]).save(str(folder), create_model_card=False)
    return """from sentence_transformers import SentenceTransformer
model = SentenceTransformer("FOLDER")
vectors = model.encode(["red running shoes"])  # of length 1"""


def to_onnx(run: Run, model: Model, folder: Path) -> str:
    """``text.onnx`` and ``image.onnx``: from token ids, or photos as the catalogue stores them, to embeddings.

    Batch size and length are free. onnxruntime runs each file at other sizes than it was traced at, and must agree.
    """
    runtime, _ = needed("onnxruntime", EXTRA), needed("onnxscript", EXTRA)
    usage = ["import numpy as np, onnxruntime"]
    for modality in [name for name in INPUTS if name in model.encoders]:
        network, names, path = _Embedding(model, modality).eval(), [*INPUTS[modality]], folder / f"{modality}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that two inputs share the names of their dimensions, which is so
            torch.onnx.export(
                network,
                tuple(_example(run, modality, 2)),
                path,
                input_names=names,
                output_names=["vectors"],
                dynamo=True,
                dynamic_shapes=(tuple(INPUTS[modality].values()),),
                external_data=False,
                verbose=False,
            )
        inputs = _example(run, modality, 3)
        (found,) = runtime.InferenceSession(path).run(None, {k: v.numpy() for k, v in zip(names, inputs, strict=True)})
        if not np.allclose(found, network(*inputs).detach().numpy(), atol=1e-4):
            problem = f"onnxruntime makes other vectors with {path.name} than torch does"
            raise CatalignError(problem, f"update both: pip install -U 'catalign[{EXTRA}]'")
        given = ", ".join(f'"{name}": {name}' for name in names)
        usage += ["", *_read_for_onnx(run, modality)]
        usage.append(f'{modality}_model = onnxruntime.InferenceSession("FOLDER/{modality}.onnx")')
        usage.append(f"{modality}_vectors = {modality}_model.run(None, {{{given}}})[0]  # of length 1")
    _write_preprocessing(run, model, folder, inside=True)
    return "\n".join(usage)


def _read_for_onnx(run: Run, modality: str) -> list[str]:
    """Python from texts or photos to what their ONNX file takes."""
    if modality == "text":
        return [
            "from tokenizers import Tokenizer",
            f'encoded = Tokenizer.from_file("FOLDER/{TOKENIZER}").encode_batch(texts)  # texts: a list of str',
            "input_ids = np.array([text.ids for text in encoded])",
            "attention_mask = np.array([text.attention_mask for text in encoded])",
        ]
    height, width = run.catalogue().images.shape[1:3]
    return [
        f"# photos: RGB, uint8 arrays ({height}, {width}, 3); the file scales and normalises them itself",
        "image = np.stack(photos).transpose(0, 3, 1, 2)",
    ]


def to_safetensors(run: Run, model: Model, folder: Path) -> str:
    """Each encoder's weights, and each projection's, as plain tensors for other code."""
    for modality, encoder in model.encoders.items():
        head = _head(model, modality)
        for name, module in {
            modality: encoder,
            **({f"{modality}_projection": head} if head is not None else {}),
        }.items():
            weights = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
            save_file(weights, folder / f"{name}.safetensors")
    _write_preprocessing(run, model, folder)
    first = next(iter(model.encoders))
    return f"""import json, safetensors.torch
weights = safetensors.torch.load_file("FOLDER/{first}.safetensors")
how = json.load(open("FOLDER/{PREPROCESSING}"))  # sizes, scales, pooling, and what the encoder is"""


class Target(NamedTuple):
    """A library to export to.

    Attributes:
        library: Its name on the Hugging Face hub.
        write: Writes a model into a folder and returns Python that loads it, with ``FOLDER`` for the folder.
        reads: Encoders, one of which it needs; none named: it takes any.
    """

    library: str
    write: Callable[[Run, Model, Path], str]
    reads: tuple[str, ...] = ()


TARGETS = {
    "hf": Target("transformers", to_hf, ("text",)),
    "timm": Target("timm", to_timm, ("image",)),
    "sentence-transformers": Target("sentence-transformers", to_sentence_transformers, ("text",)),
    "onnx": Target("onnx", to_onnx, ("text", "image")),
    "safetensors": Target("safetensors", to_safetensors),
}


class _Embedding(nn.Module):
    """From raw inputs of one modality to vectors of length 1, in operations that ONNX has."""

    def __init__(self, model: Model, modality: str) -> None:
        super().__init__()
        self.model, self.modality = model, modality

    def forward(self, *inputs: Tensor) -> Tensor:
        encoder: Any = self.model.encoders[self.modality]
        if self.modality == "image":
            pooled = encoder({"image": inputs[0]}).pooled
        else:  # in one group: to sort rows by length, as the encoder does, depends on the data
            tokens, mask = inputs
            pooled = encoder.pool(encoder.model(input_ids=tokens, attention_mask=mask)[0], mask.bool())
        return functional.normalize(self.model.embed(self.modality, pooled), dim=-1)


def _example(run: Run, modality: str, rows: int) -> list[Tensor]:
    """Inputs that are no two alike: one row is padded."""
    catalogue = run.catalogue()
    if modality == "image":
        shape = (rows, 3, *catalogue.images.shape[1:3])
        return [torch.arange(np.prod(shape)).remainder(251).to(torch.uint8).view(shape)]
    tokens = torch.arange(rows * (4 + rows)).view(rows, -1) % catalogue.vocabulary.size
    mask = torch.ones_like(tokens)
    mask[0, -2:] = 0
    return [tokens, mask]


def _head(model: Model, modality: str) -> nn.Module | None:
    """The projection of an aligned model; None where an encoder's pooled output is the embedding."""
    for objective in model.tasks().values():
        if isinstance(objective, Contrastive) and modality in objective.heads:
            return objective.heads[modality]
    return None


def _tokenizer(run: Run, encoder: TextEncoder) -> PreTrainedTokenizerFast:
    """The vocabulary's tokenizer with what preparation does beside it: specials around a text, and its longest."""
    vocabulary = encoder.vocabulary
    backend = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    names = {role: backend.id_to_token(getattr(vocabulary, role)) for role in ("pad", "unk", "cls", "sep", "mask")}
    cls, sep = names["cls"], names["sep"]
    backend.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, vocabulary.cls), (sep, vocabulary.sep)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=_longest(run),
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in names.items()},
    )


def _write_preprocessing(run: Run, model: Model, folder: Path, *, inside: bool = False) -> None:
    """``preprocessing.json``, and ``tokenizer.json`` for texts; ``inside``: the exported file normalises photos."""
    catalogue, stage = run.catalogue(), list(run.stages)[-1]
    how: dict[str, dict[str, Any]] = {}
    for modality, encoder in ((name, model.encoders[name]) for name in model.encoders if not inside or name in INPUTS):
        projected = _head(model, modality) is not None
        how[modality] = {"encoder": run.config.encoder_of(stage, modality).model_dump(), "projected": projected}
        if isinstance(encoder, TextEncoder):
            backend = _tokenizer(run, encoder).backend_tokenizer
            backend.enable_truncation(_longest(run))
            backend.enable_padding(pad_id=encoder.vocabulary.pad)
            backend.save(str(folder / TOKENIZER))
            how[modality] |= {"tokenizer": TOKENIZER, "texts": "plain, without markup", "pooling": encoder.pooling}
        elif isinstance(encoder, ImageEncoder):
            how[modality] |= {
                "photo": "RGB, scaled with its aspect kept, padded with the median colour of its border",
                "stored_size": list(catalogue.images.shape[1:3]),
                "then": "divided by 255, resized bilinearly with antialiasing, minus mean, divided by std",
                "done_by_the_file": inside,
                "size": list(encoder.size),
                "mean": encoder.mean.flatten().tolist(),
                "std": encoder.std.flatten().tolist(),
                "pooling": encoder.pooling,
            }
    write_json(folder / PREPROCESSING, how)


def _longest(run: Run) -> int:
    """Tokens of a text at most, its two special ones counted."""
    return run.catalogue().max_tokens + 2


def _card(run: Run, model: Model, target: Target, usage: str) -> str:
    catalogue, stages = run.catalogue(), []
    encoders = {name: encoder for name, encoder in model.encoders.items() if name in (target.reads or model.encoders)}
    for stage in run.stages:
        stages.append(f"{stage} ({' + '.join(run.config.stages[stage].objectives)})")
    parameters = sum(weight.numel() for encoder in encoders.values() for weight in encoder.parameters()) / 1e6
    return f"""---
library_name: {target.library}
tags: [catalign]
---
# {run.config.name}, for {target.library}

Encoders of {", ".join(encoders)} ({parameters:.1f} M parameters), learned without labels from the catalogue
{catalogue.name} ({len(catalogue.rows("train")):,} training products), seed {run.config.seed}.
Stages: {", ".join(stages)}.
Made by catalign {__version__}; weights {run.weights}.

```python
{usage}
```
"""
