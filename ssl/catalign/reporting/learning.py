"""What stages learned: loss curves, collapse monitors, reconstructed photos, guessed words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from catalign import registry
from catalign.artifacts import read_json
from catalign.config import Component
from catalign.data.catalogue import Catalogue
from catalign.errors import CatalignError
from catalign.reporting import plots
from catalign.reporting.comparison import Variant, each, every
from catalign.reporting.panels import sample
from catalign.reporting.plots import Series
from catalign.training.monitors import warnings_of
from catalign.training.run import Run

MONITORS = {
    "feature_std": ("Feature spread", "1 = spread evenly over the sphere, 0 = collapsed", 1.0),
    "rankme": ("RankMe", "effective number of dimensions in use; higher is better", None),
    "alignment": ("Alignment", "squared distance of a photo and its text; lower is better", None),
    "uniformity": ("Uniformity", "log potential between products; lower is better", None),
    "temperature": ("Temperature", "learned softness of the cross-modal softmax", None),
}
"""Monitor -> its title, how to read it, and the value of a healthy model where there is one."""
PHOTOS, TITLES = 9, 12
"""Test photos reconstructed and test titles with a hidden word."""


def training(run: Run) -> dict[str, Any]:
    """Loss curves of every objective of every stage, and the last values of its other metrics."""
    charts, others = [], []
    for stage, history in _histories(run).items():
        series = _series(history)
        for objective in sorted({key.split("/")[1] for key in series if key.startswith(("train/", "val/"))}):
            curves = {part: series[key] for part in ("train", "val") if (key := f"{part}/{objective}/loss") in series}
            if curves:
                svg = plots.curves(curves, label=f"loss of {objective} over steps", points=["val"], smooth=True)
                title = {"stage": stage, "objective": objective, "change": _change(curves)}
                charts.append({**title, "svg": Markup(svg)})
        last = {key: value for key, value in _last(series).items() if key.startswith("val/")}
        rest = sorted((key.removeprefix("val/"), value) for key, value in last.items() if not key.endswith("/loss"))
        others.append((stage, max((entry["step"] for entry in history), default=0), rest))
    return {"charts": charts, "others": others}


def monitors(run: Run) -> list[dict[str, Any]]:
    """Collapse monitors of every stage, with the warnings they gave."""
    stages = []
    for name, history in _histories(run).items():
        series = {key: curve for key, curve in _series(history).items() if key.startswith("monitor/")}
        charts = []
        for kind, (title, reading, healthy) in MONITORS.items():
            curves = {_whose(key) or kind: curve for key, curve in series.items() if key.endswith(kind)}
            if curves:
                svg = plots.curves(curves, label=f"{title} over steps", points=list(curves), reference=healthy)
                charts.append({"title": title, "reading": reading, "svg": Markup(svg)})
        if charts:
            stages.append({"name": name, "charts": charts, "warnings": warnings_of(_last(series))})
    if not stages:
        raise CatalignError("no stage recorded any monitor")
    return stages


def timeline(runs: Mapping[str, Run]) -> str:
    """Loss curves of every stage over minutes of training, stages one after the other, several runs in one panel.

    Objectives that join modalities also show their accuracy within val batches. Where an objective recorded the loss of
    a trivial solution, that is a line too.

    Args:
        runs: Name in the legend -> run, at least one.

    Returns:
        An SVG fragment.

    Raises:
        CatalignError: A run has no trained stage.
    """
    stages = _over_minutes(runs, following=True)
    return plots.timeline(stages, label=f"losses of the stages {', '.join(stages)} over minutes of training")


def race(compared: Sequence[Variant]) -> dict[str, Any]:
    """Loss curves of all runs in one axis, per stage and objective, over minutes since the stage began.

    Returns:
        ``stages`` with their charts, ``lines`` that occur in them, and ``notes`` on runs without curves and on
        monitors that warned of collapse.

    Raises:
        CatalignError: No run has a trained stage.
    """
    runs = every(compared)
    found, notes = each(runs, _histories)
    colours = {name: variant.colour for variant in compared for name in variant.named}
    stages, lines = [], set()
    for stage, panels in _over_minutes({name: runs[name] for name in found}, following=False).items():
        charts = []
        for title, curves in panels.items():
            lines |= {line for _, line in curves}
            svg = plots.panel(curves, colours, label=f"{title} of stage {stage} over minutes")
            charts.append({"title": title, "svg": Markup(svg)})
        stages.append({"name": stage, "charts": charts})
    for name, histories in found.items():
        for stage, history in histories.items():
            notes += [f"{name}, {stage}: {sentence}" for sentence in warnings_of(_last(_series(history)))]
    return {"stages": stages, "lines": [line for line in plots.LINES if line in lines], "notes": notes}


def _over_minutes(runs: Mapping[str, Run], following: bool) -> dict[str, dict[str, dict[tuple[str, str], Series]]]:
    """Stage -> panel's title -> (run, line) -> curve; each stage begins at 0, or ``following`` the one before it."""
    stages: dict[str, dict[str, dict[tuple[str, str], Series]]] = {}
    for name, run in runs.items():
        began = 0.0
        for stage, history in _histories(run).items():
            joining = [key for key, part in run.config.stages[stage].objectives.items() if _joins(part)]
            for key, curve in _series(history, "seconds").items():
                if place := _place(key, joining):
                    panel, line = place
                    minutes = [(began + seconds) / 60 for seconds in curve.steps]
                    lines = stages.setdefault(stage, {}).setdefault(panel, {})
                    lines[name, line] = Series(minutes, curve.values)
            began += history[-1]["seconds"] if following else 0.0
    return stages


def _joins(part: Component) -> bool:
    return len(part.options.get("modalities", registry.get("objective", part.name).modalities)) > 1


def _place(key: str, joining: Sequence[str]) -> tuple[str, str] | None:
    """The panel of the timeline where a recorded value belongs, and its line there."""
    match key.split("/"):
        case ["train" | "val" as part, objective, "loss"]:
            return f"{objective} loss", part
        case ["val", objective, metric] if metric.endswith("_loss"):
            return f"{objective} loss", "trivial solution"
        case ["val", objective, "accuracy"] if objective in joining:
            return f"{objective} accuracy within val batches", "val"
    return None


def _histories(run: Run) -> dict[str, list[dict[str, Any]]]:
    paths = {name: folder / "metrics.json" for name, folder in run.stages.items()}
    found = {name: read_json(path) for name, path in paths.items() if path.is_file()}
    if not found:
        raise CatalignError(f"no stage of {run.path} has been trained, so there is no metrics.json")
    return found


def _series(history: list[dict[str, Any]], clock: str = "step") -> dict[str, Series]:
    series: dict[str, Series] = {}
    for entry in history:
        for key, value in entry["values"].items():
            curve = series.setdefault(key, Series([], []))
            curve.steps.append(entry[clock])  # type: ignore[attr-defined]
            curve.values.append(value)  # type: ignore[attr-defined]
    return series


def _last(series: Mapping[str, Series]) -> dict[str, float]:
    return {key: curve.values[-1] for key, curve in series.items()}


def _whose(key: str) -> str:
    parts = key.split("/")
    return parts[1] if len(parts) > 2 else ""


def _change(curves: dict[str, Series]) -> str:
    part, curve = list(curves.items())[-1]
    return f"{part} {plots.decimal(curve.values[0])} → {plots.decimal(curve.values[-1])}"


def inpainting(run: Run, catalogue: Catalogue) -> list[dict[str, Any]]:
    """Masked, reconstructed and original photos of test products, of every stage that inpaints."""
    able = list(_objectives(run, "reconstruct"))
    if not able:
        raise CatalignError("no finished stage has an inpainting objective")
    test = catalogue.rows("test")
    rows = np.sort(sample(test[catalogue.has_image[test]], PHOTOS))
    panel = []
    for stage, name, objective in able:
        images = torch.from_numpy(np.array(catalogue.images[rows])).permute(0, 3, 1, 2)
        made = objective.reconstruct(images, torch.Generator().manual_seed(0))
        shots = [[plots.picture(pixels) for pixels in part.permute(0, 2, 3, 1).numpy()] for part in made]
        triples = [dict(zip(("masked", "reconstructed", "original"), triple)) for triple in zip(*shots, strict=True)]
        relative = getattr(objective, "norm_pix", False)
        panel.append({"stage": stage, "objective": name, "relative": relative, "rows": triples})
    return panel


def words(run: Run, catalogue: Catalogue) -> list[dict[str, Any]]:
    """Test titles with a hidden word, and what every stage with a masked language model reads there."""
    able = list(_objectives(run, "logits"))
    if not able:
        raise CatalignError("no finished stage has a masked language model")
    field = next(iter(catalogue.fields))
    test = catalogue.rows("test")
    hidden = list(islice(_hidden_words(catalogue, field, sample(test[catalogue.has_text[test]], 20 * TITLES)), TITLES))
    if not hidden:
        raise CatalignError("no title of the test split has a word to hide")
    panel = []
    for stage, _, objective in able:
        guesses = _guesses(objective.encoder("text"), objective, hidden)
        rows = [_guessed(catalogue, *text, *guess) for text, guess in zip(hidden, guesses, strict=True)]
        panel.append({"stage": stage, "rows": rows})
    return panel


def _objectives(run: Run, ability: str) -> Iterator[tuple[str, str, Any]]:
    """Stage, key and trained objective, of all finished stages' objectives that have this method."""
    for stage in run.stages:
        chosen = run.config.stages[stage].objectives.items()
        able = [key for key, part in chosen if hasattr(registry.get("objective", part.name), ability)]
        model = run.model(stage) if able else None
        for key in able:
            assert model is not None
            yield stage, key, model.objectives[key]


def _hidden_words(catalogue: Catalogue, field: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Token ids of texts of several words, and the place of a word of one piece to hide, drawn at random."""
    vocabulary, rng = catalogue.vocabulary, np.random.default_rng(0)
    for row in rows:
        ids = np.asarray(catalogue.tokens[field][int(row)])
        goes_on = np.append(vocabulary.continuation[ids], False)
        pieces = [vocabulary.tokenizer.decode([int(token)]).strip() for token in ids]
        whole = [i for i, piece in enumerate(pieces) if not goes_on[i] and not goes_on[i + 1] and len(piece) > 2]
        whole = [place for place in whole if pieces[place].isalpha() and ids[place] != vocabulary.unk]
        if len(ids) > 2 and whole:
            yield ids, int(rng.choice(whole))


def _guesses(encoder: Any, objective: Any, hidden: list[tuple[np.ndarray, int]]) -> list[tuple[list[int], list[float]]]:
    """The five likeliest tokens at the hidden place of each text, and their probabilities."""
    vocabulary = encoder.vocabulary
    lengths = np.array([len(ids) + 2 for ids, _ in hidden])
    tokens = np.full((len(hidden), lengths.max()), vocabulary.pad)
    for line, (ids, place) in zip(tokens, hidden, strict=True):
        line[: len(ids) + 2] = [vocabulary.cls, *ids, vocabulary.sep]
        line[place + 1] = vocabulary.mask
    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    with torch.no_grad():
        encoded = encoder({"tokens": torch.from_numpy(tokens), "token_mask": torch.from_numpy(mask)})
        places = torch.tensor([place + 1 for _, place in hidden])
        logits = objective.logits(encoded.tokens[torch.arange(len(hidden)), places], encoder.embedding_weight)
        top = logits.float().softmax(-1).topk(5)
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def _guessed(
    catalogue: Catalogue, ids: np.ndarray, place: int, tokens: list[int], shares: list[float]
) -> dict[str, Any]:
    def read(part: Iterable[int]) -> str:
        return catalogue.vocabulary.tokenizer.decode([int(token) for token in part]).strip()

    guesses = [(read([token]), share) for token, share in zip(tokens, shares, strict=True)]
    before, word, after = read(ids[:place]), read(ids[[place]]), read(ids[place + 1 :])
    return {"before": before, "word": word, "after": after, "guesses": guesses}
