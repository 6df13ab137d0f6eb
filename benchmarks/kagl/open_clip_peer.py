"""A peer for the KAGL table: open_clip's own training loop, from scratch, on a run's split, towers and wall clock.

``python benchmarks/kagl/open_clip_peer.py RUN -o benchmarks/kagl/results`` trains a CLIP of the same towers (timm image
tower, BERT over the catalogue's own tokenizer, linear projections to the same width) with ``open_clip_train.main``, as
a user of open_clip would (Ilharco et al. 2021, https://github.com/mlfoundations/open_clip), and puts its embeddings
through our KAGL protocol. Taken from the run's alignment stage: batch size, precision, AdamW's settings, share of
warm-up steps, loss, shape of the random crops. Left to open_clip: data loader, other augmentations, schedule,
checkpoints. It reads one caption per photo, the primary text, and knows neither pretraining stages nor groups.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from timm.models import save_for_hf
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from catalign.artifacts import atomic, digest, read_json, write_json
from catalign.bench import show
from catalign.config import TrainerConfig
from catalign.data.catalogue import Catalogue
from catalign.data.store import EmbeddingStore
from catalign.data.text import SPECIALS, Vocabulary
from catalign.encoders import ImageEncoder, TextEncoder
from catalign.errors import CatalignError
from catalign.evaluation.base import Context, Result, evaluate, merge, save_results
from catalign.evaluation.kagl import QRELS
from catalign.objectives.contrastive import Contrastive
from catalign.objectives.views import Views
from catalign.pipeline import quiet_libraries
from catalign.provenance import describe_hardware, portable
from catalign.training.model import Model, build_model
from catalign.training.run import Run

ROW = "open_clip"
CALIBRATION_STEPS = 20  # in each of two epochs
POOLERS = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler"}
PRECISIONS = {"bf16": "amp_bf16", "32": "fp32"}


class Peer:
    """What open_clip trains on and how; every path it is told is relative to the work folder.

    Args:
        run: A finished run with a contrastive stage of text and image.
        work: Folder for photos, towers, checkpoints and embeddings.

    Attributes:
        rows: The catalogue rows that the stage trains on, as far as they have a text and a photo.
        steps: Steps of an epoch; open_clip drops the last, smaller batch.
        config: open_clip's config of the towers.

    Raises:
        CatalignError: The run has no such stage, or its encoders start from pretrained weights.
    """

    def __init__(self, run: Run, work: Path) -> None:
        self.run, self.work, self.catalogue = run, work, run.catalogue()
        self.stage, model, self.objective = contrastive_stage(run)
        self.image = cast(ImageEncoder, model.encoders["image"])
        self.text = cast(TextEncoder, model.encoders["text"])
        self.trainer = run.config.trainer_of(self.stage)
        stage = run.config.stages[self.stage]
        rows = self.catalogue.rows(*stage.split, share=stage.share)
        self.rows = rows[self.catalogue.has_text[rows] & self.catalogue.has_image[rows]]
        self.steps = len(self.rows) // self.trainer.batch_size
        self.photos = Path(f"photos-{digest([self.catalogue.fingerprint, self.rows.tolist()])}")
        longest = int(next(iter(self.catalogue.tokens.values())).lengths[self.rows].max())
        width = [*self.objective.heads["image"].modules()][-1].out_features
        self.config = model_config(self.image, self.text, width, longest)

    def export(self) -> float:
        """Write towers, pairs and photos; the seconds that the photos took when they were first written."""
        write_towers(self, self.work / "model")
        part = self.rows[: self.trainer.batch_size * CALIBRATION_STEPS]
        for name, rows in (("train", self.rows), ("calibrate", part)):
            write_pairs(self.work / f"{name}.tsv", self.catalogue, rows, self.photos)
        folder = self.work / self.photos
        folder.mkdir(parents=True, exist_ok=True)

        def make() -> None:
            for row in track(self.rows, "exporting photos"):
                (folder / f"{row}.png").write_bytes(self.catalogue.thumbnail(row))

        return once(folder / "seconds.json", make)

    def calibrate(self, workers: int) -> tuple[float, float]:
        """Seconds of an epoch on this machine, data loading included, and the seconds it took to find out."""
        steps = min(CALIBRATION_STEPS, self.steps)
        last, seconds = self.train("calibrate", {**self.arguments(2, steps, workers), "log-every-n-steps": 1})
        log = last.parents[1] / "out.log"
        return epoch_seconds(log.read_text(encoding="utf-8"), steps, self.steps), seconds

    def arguments(self, epochs: int, steps: int, workers: int) -> dict[str, Any]:
        """The options of ``open_clip_train.main``, but for those that :meth:`train` adds."""
        return {
            "model": "local-dir:model",
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            **optimisation(self.trainer, epochs, steps),
            **({"siglip": []} if self.objective.loss == "sigmoid" else {}),
            **({"aug-cfg": crops(self.objective.views, self.image.size)} if self.objective.views else {}),
            "dataset-type": "csv",
            "workers": workers,
            "save-frequency": 0,  # the last epoch is saved all the same
            "log-every-n-steps": self.trainer.log_every,
        }

    def train(self, name: str, arguments: dict[str, Any]) -> tuple[Path, float]:
        """Run open_clip's loop on ``<name>.tsv``, in a process of its own; one that came to its end is not repeated.

        Returns:
            The last checkpoint, and the seconds it took.

        Raises:
            CatalignError: It ended without that checkpoint.
        """
        seed, encoders = self.run.config.seed, portable(self.run.config)["encoder"]
        inputs = digest([arguments, self.config, encoders, str(self.photos)])
        folder = self.work / "logs" / f"{name}-seed{seed}-{inputs}"
        checkpoint = folder / "checkpoints" / f"epoch_{arguments['epochs']}.pt"

        def make() -> None:
            shutil.rmtree(folder, ignore_errors=True)  # open_clip refuses a folder that holds a log
            own = {"train-data": f"{name}.tsv", "seed": seed, "logs": "logs", "name": folder.name}
            words = [sys.executable, *command({**arguments, **own})]
            # Threads that wait sleep, as in our own training: see catalign.cli.
            environment = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", **os.environ}
            ended = subprocess.run(words, cwd=self.work, env=environment, check=False)
            if ended.returncode or not checkpoint.is_file():
                raise CatalignError(f"open_clip ended without {checkpoint}", "see its messages above")

        return checkpoint, once(folder / "seconds.json", make)


def contrastive_stage(run: Run) -> tuple[str, Model, Contrastive]:
    """The stage that aligns text and image, the longest if several do: its name, untrained model and objective.

    Raises:
        CatalignError: There is none, or an encoder starts from pretrained weights.
    """
    for modality, encoder in run.config.encoder.items():
        if encoder.options.get("pretrained"):
            problem = f"encoder.{modality} of {run.path} is pretrained, but the peer starts from scratch"
            raise CatalignError(problem, "give a run whose encoders do too")
    for name in sorted(run.stages, key=lambda name: -run.record()["stages"][name]["seconds"]):
        model = build_model(run.config, name, run.catalogue())
        for objective in model.tasks().values():
            if isinstance(objective, Contrastive) and set(objective.modalities) == {"text", "image"}:
                return name, model, objective
    raise CatalignError(f"{run.path} has no finished contrastive stage of text and image", "train it: catalign align")


def once(record: Path, make: Callable[[], None]) -> float:
    """The seconds that ``make`` took: now, or before, when it left this record."""
    if not record.is_file():
        began = time.perf_counter()
        make()
        write_json(record, round(time.perf_counter() - began, 1))
    return cast(float, read_json(record))


def write_pairs(path: Path, catalogue: Catalogue, rows: np.ndarray, photos: Path) -> None:
    """The table that open_clip's csv loader reads by default: tab-separated filepath and title."""
    files = (str(photos / f"{row}.png") for row in rows)
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerows([("filepath", "title"), *zip(files, catalogue.text().take(rows), strict=True)])


def model_config(image: ImageEncoder, text: TextEncoder, width: int, longest: int) -> dict[str, Any]:
    """open_clip's description of a run's two towers, for the folder that :func:`write_towers` fills.

    Args:
        image: The run's image encoder.
        text: The run's text encoder.
        width: Width of the common space.
        longest: Tokens of the longest training text. open_clip pads every text to its context length, so a longer one
            would cost the peer time and give it nothing.
    """
    return {
        "model_cfg": {
            "embed_dim": width,
            "vision_cfg": {
                "timm_model_name": "local-dir:model/image",
                "timm_pool": image.pooling,
                "timm_proj": "linear",
                "image_size": list(image.size),
            },
            "text_cfg": {
                "hf_model_name": "model/text",
                "hf_tokenizer_name": "model",
                "hf_proj_type": "linear",
                "hf_pooler_type": POOLERS[text.pooling],
                "context_length": longest + 2,  # its first and last special token
            },
        },
        "preprocess_cfg": {
            "mean": [round(value, 4) for value in image.mean.flatten().tolist()],
            "std": [round(value, 4) for value in image.std.flatten().tolist()],
            "resize_mode": "squash",
        },
    }


def write_towers(peer: Peer, folder: Path) -> None:
    """A folder that open_clip opens as ``local-dir:``: its config, the tokenizer, a folder per tower.

    timm reads from its folder only how to build the tower. transformers reads weights too, since open_clip's loop sets
    ``hf_model_pretrained`` whatever the config says; they are the freshly drawn ones of the run's own text encoder.
    """
    backbone = peer.image.model.vit if peer.image.is_vit else peer.image.model
    fixed = {"img_size": list(peer.image.size)} if backbone.pretrained_cfg.get("fixed_input_size") else {}
    arguments = {"num_classes": 0, **fixed, **peer.run.config.encoder["image"].options.get("kwargs", {})}
    save_for_hf(backbone, str(folder / "image"), model_args=arguments, safe_serialization=True)
    peer.text.model.save_pretrained(folder / "text")
    tokenizer(peer.catalogue.vocabulary).save_pretrained(folder)
    write_json(folder / "open_clip_config.json", peer.config)


def tokenizer(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """The catalogue's tokenizer for transformers, with the special tokens that our batches put around a text."""
    names = {role: vocabulary.tokenizer.id_to_token(getattr(vocabulary, role)) for role in SPECIALS}
    inner = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    around = [(names["cls"], vocabulary.cls), (names["sep"], vocabulary.sep)]
    inner.post_processor = TemplateProcessing(single=f"{names['cls']} $A {names['sep']}", special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{f"{role}_token": name for role, name in names.items()})


def optimisation(trainer: TrainerConfig, epochs: int, steps: int) -> dict[str, Any]:
    """A stage's optimiser in open_clip's options; ``steps`` are those of an epoch."""
    clip = {} if trainer.clip is None else {"grad-clip-norm": trainer.clip}
    return {
        "precision": PRECISIONS[trainer.precision],
        "batch-size": trainer.batch_size,
        "epochs": epochs,
        "lr": trainer.lr,
        "beta1": trainer.betas[0],
        "beta2": trainer.betas[1],
        "wd": trainer.weight_decay,
        "warmup": round(epochs * steps * trainer.warmup),
        **clip,
    }


def crops(views: Views, size: tuple[int, int]) -> list[str]:
    """Random crops of the run's scale and stretch, for inputs of a height and width.

    Without ``use_timm`` open_clip ignores the ratio and draws aspects between 3:4 and 4:3, whatever the input's: it
    would squeeze upright photos in training as it never does in evaluation.
    """
    low, high = (round(stretch * size[1] / size[0], 4) for stretch in views.ratio)
    return [f"scale=({views.scale[0]},{views.scale[1]})", f"ratio=({low},{high})", "use_timm=True"]


def command(arguments: dict[str, Any]) -> list[str]:
    """The command line after ``python``; a list is an option of several words or none."""
    words = ["-m", "open_clip_train.main"]
    for name, value in arguments.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def epoch_seconds(log: str, calibrated: int, steps: int) -> float:
    """Seconds of an epoch, from open_clip's log of two short ones that names every step.

    Only the second one counts, since caches fill in the first. Its first step also starts the data loader.

    Args:
        log: The log.
        calibrated: Steps of each short epoch.
        steps: Steps of the epoch asked for.

    Raises:
        CatalignError: The log has not the form that open_clip's logs had.
    """
    times = [float(seconds) for seconds in re.findall(r"Batch \(t\): ([\d.]+)", log)]
    if len(times) != 2 * calibrated:
        raise CatalignError(f"open_clip's log names {len(times)} steps, not {2 * calibrated}", "give --epochs instead")
    first, *others = times[calibrated:]
    return first + (steps - 1) * float(np.mean(others or [first]))


def epochs_within(seconds: float, per_epoch: float) -> int:
    """The whole number of epochs, at least one, that comes nearest to a time."""
    return max(1, round(seconds / per_epoch))


class OpenClip:
    """A model that open_clip trained, as stores and protocols want it.

    Args:
        work: The peer's work folder.
        checkpoint: Weights that open_clip's loop saved.
    """

    batch_size = 512

    def __init__(self, work: Path, checkpoint: Path) -> None:
        import open_clip

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        with contextlib.chdir(work):  # the config's paths are relative to it
            self.model, _, self.preprocess = open_clip.create_model_and_transforms("local-dir:model")
            self.tokenize = open_clip.get_tokenizer("local-dir:model")
        open_clip.load_checkpoint(self.model, str(checkpoint), weights_only=True)
        self.model.eval().to(self.device)

    @property
    def parameters(self) -> int:
        """Weights of the two towers without their projections, as our encoders are counted."""
        towers = (self.model.visual.trunk, self.model.text.transformer)
        return sum(weight.numel() for tower in towers for weight in tower.parameters())

    @torch.inference_mode()
    def _embed(self, encode: Callable[..., Tensor], inputs: Tensor) -> np.ndarray:
        return encode(inputs.to(self.device), normalize=True).float().cpu().numpy()

    def _batches(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self.batch_size) for start in range(0, count, self.batch_size))

    def knows(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) bool: open_clip embeds any text."""
        return np.ones(len(texts), dtype=bool)

    def text(self, texts: Sequence[str]) -> np.ndarray:
        """Texts as ``(n, D)`` float32 of length 1."""
        batches = (self.tokenize(list(texts[rows])) for rows in self._batches(len(texts)))
        return np.concatenate([self._embed(self.model.encode_text, batch) for batch in batches])

    def images(self, photos: Sequence[np.ndarray]) -> np.ndarray:
        """Photos ``(H, W, 3)`` uint8 as ``(n, D)`` float32 of length 1."""
        batches = ([self.preprocess(Image.fromarray(p)) for p in photos[rows]] for rows in self._batches(len(photos)))
        return np.concatenate([self._embed(self.model.encode_image, torch.stack(batch)) for batch in batches])

    def catalogue(self, catalogue: Catalogue, path: Path) -> EmbeddingStore:
        """A store of every product's ``image`` and ``text``."""
        has, titles = {"image": catalogue.has_image, "text": catalogue.has_text}, catalogue.text()
        with EmbeddingStore.writing(path, catalogue.ids, list(has), has, data=catalogue.fingerprint) as writer:
            for rows in track(list(self._batches(len(catalogue))), "embedding products"):
                writer.append("image", self.images(catalogue.images[rows]))
                writer.append("text", self.text(titles[rows]))
        return EmbeddingStore.open(path, verify=False)


def measure(peer: Peer, arguments: dict[str, Any], qrels: Path, seconds: dict[str, float]) -> Result:
    """Train, embed and evaluate the peer of one run.

    Args:
        peer: The peer, exported.
        arguments: The options of open_clip's training.
        qrels: KAGL's relevance file.
        seconds: Seconds of the steps before.

    Returns:
        The row ``open_clip`` under the published protocol. It has no untrained baseline: that is the run's, whose
        towers are the same.
    """
    run, catalogue = peer.run, peer.catalogue
    checkpoint, seconds["train"] = peer.train("train", arguments)
    began = time.perf_counter()
    embedder = OpenClip(peer.work, checkpoint)
    store = embedder.catalogue(catalogue, peer.work / "embeddings")
    seconds["embeddings"] = round(time.perf_counter() - began, 1)
    context = Context(catalogue, store, embedder=embedder, name=ROW, seed=run.config.seed)
    [result] = evaluate(context, "kagl", qrels=str(qrels), documents=["published"])
    split = "+".join(run.config.stages[peer.stage].split)
    result.details |= {
        "training": f"KAGL {split} split ({len(peer.rows):,} products)",
        "parameters": embedder.parameters,
        "seconds": {**seconds, **result.details["seconds"]},
    }
    result.wall_clock_s = round(sum(result.details["seconds"].values()), 1)
    result.versions = {**result.versions, "open_clip_torch": metadata.version("open_clip_torch")}
    encoder = portable(run.config)["encoder"]
    result.config = {"name": ROW, "seed": context.seed, "arguments": arguments, **peer.config, "encoder": encoder}
    return result


def peer_row(options: argparse.Namespace) -> Result:
    """The peer's result, merged over the runs as seeds; the first run's calibration holds for all.

    Raises:
        CatalignError: open_clip or the relevance file is missing, or a run does not fit.
    """
    if importlib.util.find_spec("open_clip_train") is None:
        raise CatalignError("open_clip's training loop is not installed", "pip install -e '.[bench]'")
    results, epochs = [], options.epochs
    for run in map(Run.open, options.runs):
        qrels = options.qrels or Path(run.config.data.root or ".") / QRELS
        if not qrels.is_file():
            raise CatalignError(f"{qrels} does not exist", "give --qrels FILE; see benchmarks/kagl/README.md")
        peer, record = Peer(run, ((options.work or run.path) / ROW).resolve()), run.record()
        seconds = {"prepare": record.get("steps", {}).get("prepare", 0.0), "export": peer.export()}
        if epochs is None:
            per_epoch, seconds["calibrate"] = peer.calibrate(options.workers)
            ours = sum(record["stages"][name]["seconds"] for name in run.stages)
            budget = ours if options.minutes is None else options.minutes * 60
            epochs = epochs_within(budget, per_epoch)
            print(f"{per_epoch:.0f} s per epoch, so {epochs} epochs in {budget / 60:.0f} min", file=sys.stderr)
        results.append(measure(peer, peer.arguments(epochs, peer.steps, options.workers), qrels, seconds))
    return merge(results)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a finished run; several runs are seeds")
    parser.add_argument("--minutes", type=float, help="time to train (as long as the run's stages took)")
    parser.add_argument("--epochs", type=int, help="epochs to train, instead of as many as fit into that time")
    parser.add_argument("--work", type=Path, help=f"folder in which {ROW}/ holds photos and checkpoints (the run's)")
    cores = describe_hardware()["cores"]
    parser.add_argument("--workers", type=int, default=cores, help="processes that load data (one per core)")
    parser.add_argument("--qrels", type=Path, help=f"KAGL's relevance file (<data.root>/{QRELS})")
    parser.add_argument("-o", "--output", type=Path, help=f"folder for {ROW}.json")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the peer and write its result; 0 on success, 2 when the input was wrong."""
    options = build_parser().parse_args(arguments)
    quiet_libraries()
    try:
        result = peer_row(options)
        if options.output:
            save_results([result], options.output)
    except CatalignError as error:
        print(f"open_clip_peer: {error}", file=sys.stderr)
        return 2
    show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
