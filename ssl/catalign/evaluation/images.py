"""Classification of an image folder from frozen features, by the simplest classifiers: kNN and a linear layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from catalign.artifacts import digest
from catalign.data.images import SUFFIXES, BadImageError, load
from catalign.data.sources import files_below
from catalign.errors import CatalignError
from catalign.evaluation.base import Context, Result, Skipped, protocol
from catalign.evaluation.baselines import averaged
from catalign.evaluation.classification import CLASSIFIERS, DECAYS, chosen_methods, judge
from catalign.evaluation.inputs import data_file, training
from catalign.evaluation.significance import RECORD, compared
from catalign.registry import register
from catalign.retrieval.neighbours import NEIGHBOURS, TEMPERATURE

LAYOUT = "train/CLASS/… and test/CLASS/… or val/CLASS/…, as CIFAR-10 and Imagenette are laid out"
HELD_OUT = 0.1
BATCH = 512

Guesses = dict[str, np.ndarray]
"""By method, the class numbers (T,) that it gives the test images."""


@register("protocol", "images")
def images(
    context: Context, *, folder: str | None = None, methods: list[str] | None = None, seed: int = 0
) -> list[Result]:
    """Classify the images of a folder from the image encoder's frozen features, with kNN and a linear layer.

    Data: ``<folder>/train/CLASS/*`` and ``<folder>/test/CLASS/*``, as torchvision's ImageFolder has them; where there
    is no ``test``, ``val`` is scored. An image is fitted into the size of the catalogue's photos, its aspect kept, and
    the encoder scales it to its input. Train images fit the classifiers; images of ``val`` choose the linear layer's
    weight decay (without a ``val`` beside ``test``: a tenth of the train images, drawn by ``seed``, which then fit
    nothing); test images are scored once.

    kNN and linear layer: as in ``probe``.

    Metrics, keyed ``<knn|linear>/<metric>``: ``accuracy``; ``macro_f1``, the unweighted mean of F1 over classes.
    Intervals and paired tests (``significance``) are of the accuracy, over test images.

    Baselines under the same keys: ``majority`` (the commonest train class), ``pixels`` (images averaged to 16 × 12),
    ``untrained`` (the same encoder before any training).

    Args:
        context: What is measured.
        folder: The image folder; ``<data.root>/images`` by default.
        methods: ``knn`` and/or ``linear``; null for both.
        seed: Draws the held-out train images.

    Raises:
        Skipped: No image encoder, or no folder.
        CatalignError: The folder has another layout, a class has no image, or an image cannot be read.
    """
    methods = chosen_methods(methods)
    if "image" not in context.store.names or context.embedder is None:
        raise Skipped("images needs an image encoder and this run has none")
    root = data_file(context, "images.folder", folder, Path("images"), LAYOUT)
    found = read_folder(root, seed)
    encoders: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {"ours": context.embedder.image_features}
    encoders["pixels"] = lambda photos: averaged(np.stack(photos))
    if (untrained := context.untrained_queries()) is not None:
        encoders["untrained"] = untrained.image_features
    features = described(found.paths, context.catalogue.images.shape[1:3], encoders)
    guesses = {name: _guesses(found, table, methods) for name, table in features.items()}
    truth, commonest = found.labels[found.rows["test"]], np.bincount(found.labels[found.rows["train"]]).argmax()
    guesses["majority"] = dict.fromkeys(methods, np.full_like(truth, commonest))
    scores = {name: _metrics(truth, some) for name, some in guesses.items()}
    right = {name: {f"{m}/accuracy": (g == truth) * 1.0 for m, g in some.items()} for name, some in guesses.items()}
    metrics, cases = scores.pop("ours"), right.pop("ours")
    record = protocol(
        "images",
        root.resolve().name,
        data=found.digest,
        tested=found.tested,
        decay_chosen_on=found.chosen_on,
        held_out={"share": HELD_OUT, "seed": seed},
        knn={"similarity": "cosine", "k": NEIGHBOURS, "temperature": TEMPERATURE},
        linear={"loss": "softmax", "optimiser": "L-BFGS", "decays": DECAYS},
        significance=RECORD,
    )
    details = {"classes": len(found.classes), "training": training(context)}
    details |= {f"{split}_images": len(places) for split, places in found.rows.items()}
    return [Result("images", context.name, record, metrics, dict(scores), details, significance=compared(cases, right))]


@dataclass
class Folder:
    """An image folder.

    Attributes:
        classes: Names of the classes.
        paths: N images.
        labels: (N,) class numbers.
        rows: Which images are ``train``, ``val`` and ``test``.
        tested: The folder that ``test`` is.
        chosen_on: What ``val`` is, in words.
        digest: Of the images' paths and sizes in bytes.
    """

    classes: list[str]
    paths: list[Path]
    labels: np.ndarray
    rows: dict[str, np.ndarray]
    tested: str
    chosen_on: str
    digest: str


def read_folder(root: Path, seed: int = 0) -> Folder:
    """Read which images of which classes a folder has; see :func:`images`.

    Raises:
        CatalignError: No ``train``, neither ``test`` nor ``val``, a class without an image or one that train lacks.
    """
    splits = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    if "train" not in splits or len(splits) < 2:
        raise CatalignError(f"{root} holds {' and '.join(splits) or 'no split'}", f"lay it out as {LAYOUT}")
    by_split = {split: _classes(root / split) for split in splits}
    classes = list(by_split["train"])
    for split, some in by_split.items():
        if strange := [name for name in some if name not in classes]:
            raise CatalignError(
                f"{root / split / strange[0]} is a class that {root / 'train'} lacks",
                f"classes of train: {', '.join(classes[:10])}",
            )
    if len(classes) < 2:
        raise CatalignError(f"{root / 'train'} has {len(classes)} classes", "give each class a folder of its own")
    listed = [
        (split, classes.index(name), path)
        for split, some in by_split.items()
        for name, paths in some.items()
        for path in paths
    ]
    names, labels = np.array([split for split, _, _ in listed]), np.array([label for _, label, _ in listed])
    rows = {split: np.flatnonzero(names == split) for split in splits}
    chosen_on = "val"
    if len(splits) == 2:
        rows["test"], chosen_on = rows[splits[1]], f"{HELD_OUT:.0%} of train, held out"
        drawn = np.random.default_rng(seed).permutation(rows["train"])
        held = round(HELD_OUT * len(drawn))
        rows |= {"train": np.sort(drawn[held:]), "val": np.sort(drawn[:held])}
    seen = digest([[path.relative_to(root).as_posix(), path.stat().st_size] for _, _, path in listed], 8)
    return Folder(classes, [path for _, _, path in listed], labels, rows, splits[-1], chosen_on, seen)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The images of every class, by name."""
    found = {
        path.name: files_below(path, SUFFIXES)
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }
    if not found:
        raise CatalignError(f"{folder} has no class folder", f"lay it out as {LAYOUT}")
    if empty := [name for name, paths in found.items() if not paths]:
        problem = f"class folder {folder / empty[0]} holds no image"
        raise CatalignError(problem, f"put some in it ({', '.join(sorted(SUFFIXES))}), or delete it")
    return found


def described(
    paths: list[Path], size: tuple[int, int], encoders: Mapping[str, Callable[[list[np.ndarray]], np.ndarray]]
) -> dict[str, np.ndarray]:
    """What every encoder makes (N, D) of N images, each decoded once, ``size`` being height and width.

    Raises:
        CatalignError: An image cannot be read.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    starts = range(0, len(paths), BATCH)
    for start in track(starts, "images", disable=len(starts) < 2):
        photos = [_pixels(path, size) for path in paths[start : start + BATCH]]
        for name, encode in encoders.items():
            parts[name].append(encode(photos))
    return {name: np.concatenate(some) for name, some in parts.items()}


def _pixels(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        return load(path, size)
    except BadImageError as error:
        raise CatalignError(f"image {path} cannot be read: {error}", "mend it, or delete it") from None


def _guesses(folder: Folder, features: np.ndarray, methods: list[str]) -> Guesses:
    train, val = ((features[folder.rows[split]], folder.labels[folder.rows[split]]) for split in ("train", "val"))
    tested, classes = features[folder.rows["test"]], len(folder.classes)
    return {method: CLASSIFIERS[method](train, val, classes)(tested).argmax(1) for method in methods}


def _metrics(truth: np.ndarray, guesses: Guesses) -> dict[str, float]:
    judged = {method: judge(truth, some) for method, some in guesses.items()}
    return {f"{method}/{metric}": value for method, scores in judged.items() for metric, value in scores.items()}
