"""Click prediction: given what a user did, is a product taken? With and without embeddings of content."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from sklearn.decomposition import PCA, TruncatedSVD

from catalign.artifacts import digest
from catalign.data.interactions import TRAIN, Cases, Histories
from catalign.embeddings.extract import Embedder
from catalign.embeddings.fusion.base import normalised
from catalign.errors import CatalignError
from catalign.evaluation.base import Context, Result, Skipped, protocol
from catalign.evaluation.baselines import tfidf
from catalign.evaluation.click_metrics import BINS, measured, reliability, surety
from catalign.evaluation.click_models import Learner, Questions, constant, dcn, logistic
from catalign.evaluation.inputs import text_vectors
from catalign.evaluation.negatives import draw_negatives
from catalign.evaluation.recommenders import counts, matrix
from catalign.evaluation.sequential import log_of
from catalign.evaluation.significance import RECORD
from catalign.registry import register
from catalign.training.model import build_model, modalities_of
from catalign.training.run import Run

MODELS: dict[str, Learner] = {"logistic": logistic, "dcn": dcn}
OWN = "_content"
"""Ending of the models' names that read the run's content."""
PROJECTED = 32
"""Dimensions of content that models read, besides cosines over all of them."""
HIDDEN = 0.1
"""Share of train cases whose ids and counts are hidden, so that models learn what to say of new products."""


@dataclass(frozen=True)
class Trial:
    """Cases of one split, each with the product that was taken and others that were not.

    Attributes:
        cases: Q of them.
        candidates: (Q, C) product rows, the taken one first.
        bought: (Q, C) train events of each candidate, without the one that is asked for; 0 where models may not know
            who it is.
    """

    cases: Cases
    candidates: np.ndarray
    bought: np.ndarray

    @property
    def taken(self) -> np.ndarray:
        """(Q, C) bool, the answers."""
        return np.arange(self.candidates.shape[1]) == np.zeros((len(self.cases), 1))


@register("protocol", "ctr")
def ctr(
    context: Context,
    *,
    content: str = "text",
    negatives: int = 4,
    sampling: Literal["uniform", "popular"] = "uniform",
    max_train: int = 40_000,
    max_cases: int = 5_000,
    draw: int = 0,
) -> list[Result]:
    """Does content tell which product is taken, beyond ids and popularity?

    Data: the catalogue's histories. A case is an event after others of the same user: its product was taken, and beside
    it stand ``negatives`` products that the user has nowhere in the log, drawn once and for all; products with a train
    event beside one that has some, products without beside one that has none. Train cases are train events, val
    chooses strengths and epochs, test is read once. Nobody was shown these candidates: it is a choice against a sample,
    not a click on an impression, and rates are those of the sample.

    Rows, named after the run: ``-logistic``, logistic regression, and ``-dcn``, a small DCN-V2 (Wang et al. 2021,
    https://arxiv.org/abs/2008.13535) with a vector per product, which also reads the history's products. Both know who
    the candidate is, how often it and the history's products are bought in train events, and of the content: cosines
    with the history's mean and last product, the candidate's vector and its product with the history's mean in 32
    principal dimensions. A tenth of the train cases hides ids and counts, which new products do not have. The DCN's
    seed is the run's.

    Metrics, keyed ``<catalogue>/<metric>``: ``auc``, ``log_loss``, ``calibration_error`` (the expected one, ten bins of
    equal size); ``details`` hold the reliability curves, of the first seed. Intervals and paired tests
    (``significance``) draw cases, not candidates; those of the AUC are of DeLong's components.

    Baselines: ``constant`` (the rate), ``popularity`` (logistic regression of train events), and the same two models
    without content (``logistic``, ``dcn``), with titles' TF-IDF reduced to the same width (``…_tfidf``), and with
    the content of untrained encoders, if the run has stored or can build them (``…_untrained``).

    Args:
        context: What is measured.
        content: Vectors of the store; ``text`` may also come from the run's last stage with a text encoder. Those that
            learned from the same train events, such as ``behaviour``, look better in train cases than they are.
        negatives: Products not taken, per case.
        sampling: ``uniform``, or ``popular``: in proportion to train events.
        max_train: Train cases at most.
        max_cases: Val and test cases at most, each.
        draw: Another number draws other cases and negatives. It is not the run's seed: rows must share them.

    Raises:
        Skipped: No histories, no such content, or too few products to draw from.
        CatalignError: An option out of range.
    """
    if min(negatives, max_train, max_cases) < 1:
        raise CatalignError("evaluation.ctr: negatives, max_train and max_cases must be 1 or more")
    catalogue, histories = context.catalogue, context.catalogue.histories
    if histories is None:
        raise Skipped("ctr needs histories and this catalogue has none", "name a log: data.interactions.path=…")
    contents = _contents(context, content)
    often = counts(histories, len(catalogue), TRAIN)
    most = {"train": max_train, "val": max_cases, "test": max_cases}
    drawn: dict[str, Any] = {"negatives": negatives, "sampling": sampling, "seed": draw}
    trials = {split: make_trial(histories, often, split, most=most[split], **drawn) for split in most}
    rows = _predictions(trials, often, contents, context.seed)
    record = protocol(
        "ctr",
        f"{catalogue.name}-test",
        data=log_of(catalogue, histories),
        cases={split: digest(trial.candidates.tolist(), 8) for split, trial in trials.items()},
        negatives={"number": negatives, "sampling": sampling, "of": "train events, or none, as the taken one"},
        calibration=f"{BINS} bins of equal size",
        significance=f"{RECORD}; AUC by DeLong's components",
    )
    counted = {split: len(trial.cases) for split, trial in trials.items()}
    counted["test, without a train event"] = int((trials["test"].bought[:, 0] == 0).sum())
    details: dict[str, Any] = {"training": f"train events, {content}", "cases": counted}
    if context.run is not None and content not in context.store.names:
        encoder = context.run.record()["stages"][_text_stage(context.run)]["parameters"]
        details["parameters"] = sum(encoder.values())
    name = context.name if content == "text" else f"{context.name}-{content}"
    return _results(rows, trials["test"].taken, prefix=catalogue.name, name=name, record=record, details=details)


def make_trial(
    histories: Histories, often: np.ndarray, split: str, *, negatives: int, sampling: str, most: int, seed: int
) -> Trial:
    """Cases of one split and their candidates.

    Args:
        histories: What users did.
        often: (N,) train events of each product.
        split: ``train``, ``val`` or ``test``.
        negatives: Products not taken, per case.
        sampling: ``uniform`` or ``popular``.
        most: Cases at most, drawn at random.
        seed: Of every draw.

    Raises:
        Skipped: No case has enough products to draw from.
    """
    rng, train = np.random.default_rng(seed), split == "train"
    cases = train_cases(histories) if train else histories.cases(split)
    cases = _select(cases, np.sort(rng.permutation(len(cases))[:most]))
    candidates = np.full((len(cases), 1 + negatives), -1)
    candidates[:, 0] = cases.targets
    others = often[cases.targets] - train  # what a train case asks for must not be known of it
    for warm in (True,) if train else (True, False):
        rows = np.flatnonzero((others > 0) == warm)
        weights = np.where((often > 0) == warm, often if sampling == "popular" else 1, 0)
        owned = np.bincount(histories.owners[weights[histories.items.values] > 0], minlength=1).max()
        if len(rows) and (weights > 0).sum() - owned >= negatives:
            candidates[rows, 1:] = draw_negatives(histories, _select(cases, rows), weights, negatives, seed=seed)
    kept = np.flatnonzero(candidates[:, -1] >= 0)
    if not len(kept):
        raise Skipped(f"ctr: no {split} case has {negatives} products beside it that its user does not know")
    bought = often[candidates[kept]]
    if train:
        bought[:, 0] -= 1
        bought[rng.random(len(kept)) < HIDDEN] = 0
    return Trial(_select(cases, kept), candidates[kept], bought)


def train_cases(histories: Histories) -> Cases:
    """One question per train event with train events of the same user before it, which are its context."""
    rows = histories.part(TRAIN)
    owners = np.repeat(np.arange(len(rows)), rows.lengths)
    asked = np.flatnonzero(np.arange(len(owners)) > rows.offsets[owners])
    users = owners[asked]
    return Cases(users, rows.slices(rows.offsets[users], asked), rows.values[asked].astype(np.int64))


def _select(cases: Cases, rows: np.ndarray) -> Cases:
    contexts = cases.contexts.slices(cases.contexts.offsets[rows], cases.contexts.offsets[rows + 1])
    return replace(cases, users=cases.users[rows], contexts=contexts, targets=cases.targets[rows])


def _contents(context: Context, name: str) -> dict[str, np.ndarray]:
    """Vectors (N, D) at unit length, zeros where a product has none, by the ending of the models that read them."""
    titles = list(context.catalogue.text(next(iter(context.catalogue.fields))))
    contents: dict[str, np.ndarray] = {}
    if name in context.store.names:
        contents[OWN] = normalised(np.asarray(context.store[name]))
        if context.untrained is not None and name in context.untrained.names:
            contents["_untrained"] = normalised(np.asarray(context.untrained[name]))
    elif name == "text" and context.run is not None and (stage := _text_stage(context.run)):
        models = {
            OWN: context.run.model(stage),
            "_untrained": build_model(context.run.config, stage, context.catalogue),
        }
        contents = {key: text_vectors(Embedder.from_run(context.run, model), titles) for key, model in models.items()}
    else:
        raise Skipped(f"ctr needs {name} embeddings and this run has none", "name others: evaluation.ctr.content=…")
    (words,) = tfidf(titles)
    width = min(contents[OWN].shape[1], min(words.shape) - 1)
    if width > 0:
        contents["_tfidf"] = normalised(TruncatedSVD(width, random_state=0).fit_transform(words).astype(np.float32))
    return contents


def _text_stage(run: Run) -> str:
    """The last finished stage with a text encoder, "" if there is none."""
    return next((stage for stage in reversed(run.stages) if "text" in modalities_of(run.config, stage)), "")


def _predictions(
    trials: dict[str, Trial], often: np.ndarray, contents: dict[str, np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    """(Q, C) probabilities of the test candidates, by model and ending."""
    answers = {split: trial.taken.ravel() for split, trial in trials.items()}
    plain = {split: questions_of(trial, often) for split, trial in trials.items()}
    known = {s: replace(q, numbers=q.numbers[:, :1], categories=np.minimum(q.categories, 1)) for s, q in plain.items()}
    read = {"": plain}
    for ending, vectors in contents.items():
        small = PCA(min(PROJECTED, *vectors.shape), random_state=0).fit_transform(vectors)
        numbers = {split: content_numbers(trial, vectors, small) for split, trial in trials.items()}
        read[ending] = {s: replace(q, numbers=np.hstack([q.numbers, numbers[s]])) for s, q in plain.items()}
    asked: dict[str, tuple[Learner, dict[str, Questions]]] = {
        "constant": (constant, plain),
        "popularity": (logistic, known),
        **{model + ending: (learner, read[ending]) for ending in read for model, learner in MODELS.items()},
    }
    rows = {}
    for row, (learner, questions) in asked.items():
        train, val = ((questions[split], answers[split]) for split in ("train", "val"))
        predict = learner(train, val, seed)
        rows[row] = predict(questions["test"]).reshape(trials["test"].candidates.shape)
    return rows


def questions_of(trial: Trial, often: np.ndarray) -> Questions:
    """What is known without content, a question per candidate: its code, 0 if it may not be known, and popularity."""
    contexts, (cases, count) = trial.cases.contexts, trial.candidates.shape
    heard = np.repeat(_mean(trial, np.log1p(often)[:, None]), count)
    popular = np.log1p(trial.bought).ravel()
    rows = np.repeat(np.arange(cases), count)
    return Questions(
        numbers=np.stack([popular, heard, popular * heard], axis=1).astype(np.float32),
        categories=np.where(trial.bought > 0, trial.candidates + 1, 0).reshape(-1, 1),
        sizes=(len(often) + 1,),
        history=contexts.slices(contexts.offsets[rows], contexts.offsets[rows + 1]),
    )


def content_numbers(trial: Trial, vectors: np.ndarray, small: np.ndarray) -> np.ndarray:
    """What content says of each candidate: cosines, its small vector, and the product of that with the history's.

    Args:
        trial: Q cases of C candidates.
        vectors: (N, D) of unit length, or zeros.
        small: (N, P) the same in fewer dimensions.

    Returns:
        (Q * C, 2 + 2 P) float32.
    """
    contexts, own = trial.cases.contexts, small[trial.candidates]
    mean, last = normalised(_mean(trial, vectors)), vectors[contexts.values[contexts.offsets[1:] - 1]]
    cosines = [np.einsum("qd,qcd->qc", side, vectors[trial.candidates])[..., None] for side in (mean, last)]
    found = np.concatenate([*cosines, own, own * _mean(trial, small)[:, None]], axis=2)
    return found.reshape(-1, found.shape[2]).astype(np.float32)


def _mean(trial: Trial, values: np.ndarray) -> np.ndarray:
    """(Q, D) mean over the products of each history of their values (N, D)."""
    contained = matrix(trial.cases.contexts, len(values))
    return np.asarray(contained @ values) / contained.getnnz(axis=1)[:, None]


def _results(
    rows: dict[str, np.ndarray],
    taken: np.ndarray,
    *,
    prefix: str,
    name: str,
    record: dict[str, Any],
    details: dict[str, Any],
) -> list[Result]:
    """A row per model with the run's content, each with all baselines and tests against what it has to beat."""

    def keyed(metrics: dict[str, float]) -> dict[str, float]:
        return {f"{prefix}/{key}": value for key, value in metrics.items()}

    metrics = {row: keyed(measured(taken, chance)) for row, chance in rows.items()}
    curves = {row: reliability(taken, chance) for row, chance in rows.items()}
    beside = {row: chance for row, chance in rows.items() if not row.endswith(OWN)}
    sure = {row: keyed(surety(taken, chance)) for row, chance in beside.items()}
    results = []
    for model in MODELS:
        own, rivals = model + OWN, {row: beside[row] for row in beside if row.startswith((model, "popularity"))}
        noted = {**details, "reliability": {"ours": curves[own], **{row: curves[row] for row in beside}}}
        tests = {"ours": keyed(surety(taken, rows[own], rivals)), **sure}
        baselines = {row: metrics[row] for row in beside}
        results.append(Result("ctr", f"{name}-{model}", record, metrics[own], baselines, noted, significance=tests))
    return results
