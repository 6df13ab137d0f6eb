"""Clicks on real impressions: the logs of Open Bandit (Saito et al. 2021, https://arxiv.org/abs/2008.07146).

``python benchmarks/ctr/open_bandit.py data.root=PATH -o benchmarks/ctr/results/open_bandit`` writes a result per model.
The items are anonymous, so there is no content to embed: models alone, those of the protocol ``ctr``.

Six logs of 10,000 impressions of a fashion shop, a week of November 2019, two policies (random, Bernoulli Thompson
sampling) in three campaigns, are learned as one: 24 to 27 November train, the 28th is val, the 29th and 30th are test.
What is known of an impression: policy, campaign, position, item and its four features, the user's four features, the
affinity of user and item, and the sum of the user's affinities; not the propensity, which is the policy's own opinion.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from catalign.evaluation.base import Result
    from catalign.evaluation.click_models import Answered, Learner, Predictor, Questions

POLICIES, CAMPAIGNS = ("random", "bts"), ("all", "men", "women")
SEEDS = (0, 1, 2)
VAL, TEST = "2019-11-28", "2019-11-29"
"""First days, in UTC."""
RATE = "item_rate"
CATEGORIES = ["item", "policy", "campaign", "position", *(f"user_feature_{n}" for n in range(4))]
CATEGORIES += [f"item_feature_{n}" for n in (1, 2, 3)]
NUMBERS = ["affinity", "affinities", "item_feature_0"]
SMOOTHING = (10.0, 100.0, 1_000.0, 10_000.0)
"""Impressions at the mean rate that the item's rate starts from; val chooses."""


def main() -> None:
    """Train the models and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="data.root=PATH, with open-bandit/<policy>_<campaign>.parquet in it")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    options = parser.parse_args()

    from catalign.evaluation.base import save_results

    began = time.perf_counter()
    table = read_logs(Path(options.root.removeprefix("data.root=")).expanduser() / "open-bandit")
    results = results_of(table)
    for result in results:
        result.wall_clock_s = round(time.perf_counter() - began, 1)
    print(*save_results(results, options.output))


def read_logs(folder: Path) -> pd.DataFrame:
    """All impressions of the six logs: time, click, ``CATEGORIES`` and ``NUMBERS``."""
    logs = []
    for campaign in CAMPAIGNS:
        items = pd.read_csv(folder / f"item_context_{campaign}.csv")
        for policy in POLICIES:
            log = pd.read_parquet(folder / f"{policy}_{campaign}.parquet")
            affinities = log.filter(like="user-item_affinity_").to_numpy()
            log["affinity"] = np.log1p(affinities[np.arange(len(log)), log["item_id"]])
            log["affinities"] = np.log1p(affinities.sum(axis=1))
            log = log.merge(items, on="item_id", validate="many_to_one").assign(policy=policy, campaign=campaign)
            log["item"] = campaign + log["item_id"].astype(str)  # numbers begin anew in every campaign
            logs.append(log[["timestamp", "click", *CATEGORIES, *NUMBERS]])
    return pd.concat(logs, ignore_index=True)


def questions_of(table: pd.DataFrame) -> Questions:
    """The impressions as the models of ``ctr`` read them."""
    from catalign.evaluation.click_models import Questions

    codes = np.stack([pd.factorize(table[name])[0] for name in CATEGORIES], axis=1)
    return Questions(table[NUMBERS].to_numpy(np.float32), codes, tuple(codes.max(axis=0) + 1))


def item_rate(train: Answered, val: Answered, seed: int = 0) -> Predictor:
    """How often an item was clicked, smoothed towards the rate of all."""
    from sklearn.metrics import log_loss

    size, codes = train[0].sizes[0], train[0].categories[:, 0]
    shown, clicked = np.bincount(codes, minlength=size), np.bincount(codes, train[1], size)
    rates = [(clicked + most * train[1].mean()) / (shown + most) for most in SMOOTHING]
    best = min(rates, key=lambda rate: log_loss(val[1], rate[val[0].categories[:, 0]]))
    return lambda questions: best[questions.categories[:, 0]]


def results_of(table: pd.DataFrame) -> list[Result]:
    """A result per model, beside the constant rate and the items' rates."""
    from catalign.artifacts import digest
    from catalign.evaluation.base import Result, merge, protocol
    from catalign.evaluation.click_metrics import BINS, reliability
    from catalign.evaluation.click_models import constant, dcn, logistic
    from catalign.evaluation.significance import RECORD
    from catalign.provenance import describe_hardware, describe_versions, git_revision

    everything, day = questions_of(table), table["timestamp"].str[:10]
    days = {"train": day < VAL, "val": (day >= VAL) & (day < TEST), "test": day >= TEST}
    parts = {name: _part(everything, table, rows.to_numpy()) for name, rows in days.items()}
    shown, taken = table[days["test"]], parts["test"][1][:, None]
    record = protocol(
        "ctr",
        "open_bandit",
        data=digest([table["timestamp"].tolist(), table["click"].tolist()], 8),
        split=f"by time: val from {VAL}, test from {TEST} (UTC)",
        known=[*CATEGORIES, *NUMBERS],
        calibration=f"{BINS} bins of equal size",
        significance=f"{RECORD}; AUC by DeLong's components",
    )
    trivial = {name: predicted(learner, parts) for name, learner in (("constant", constant), (RATE, item_rate))}
    baselines = {name: judged(shown, chance) for name, chance in trivial.items()}
    line = predicted(logistic, parts)

    def result(row: str, chance: np.ndarray, seed: int, rivals: dict[str, np.ndarray]) -> Result:
        curves = {name: reliability(taken, curve) for name, curve in {"ours": chance, **trivial}.items()}
        metrics, tests = judged(shown, chance, rivals)
        return Result(
            "ctr",
            row,
            record,
            metrics,
            {name: found for name, (found, _) in baselines.items()},
            {"training": f"clicks before {VAL}", **counted(parts), "reliability": curves},
            [seed],
            describe_hardware(),
            describe_versions(),
            git=git_revision(),
            significance={"ours": tests, **{name: sure for name, (_, sure) in baselines.items()}},
        )

    networks = [result("dcn", predicted(dcn, parts, seed), seed, {**trivial, "logistic": line}) for seed in SEEDS]
    return [result("logistic", line, 0, trivial), merge(networks)]


def _part(everything: Questions, table: pd.DataFrame, rows: np.ndarray) -> Answered:
    chosen = replace(everything, numbers=everything.numbers[rows], categories=everything.categories[rows])
    return chosen, table["click"].to_numpy(bool)[rows]


def counted(parts: dict[str, Answered]) -> dict[str, dict[str, int]]:
    """Impressions and clicks of every part."""
    clicked = {name: answers for name, (_, answers) in parts.items()}
    return {
        "impressions": {name: len(answers) for name, answers in clicked.items()},
        "clicks": {name: int(answers.sum()) for name, answers in clicked.items()},
    }


def predicted(learner: Learner, parts: dict[str, Answered], seed: int = 0) -> np.ndarray:
    """(Q, 1) probabilities of a click on the test impressions."""
    return learner(parts["train"], parts["val"], seed)(parts["test"][0])[:, None]


def judged(
    shown: pd.DataFrame, chance: np.ndarray, rivals: dict[str, np.ndarray] | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics and intervals of all impressions, each policy's and each log's; tests of all of them."""
    from catalign.evaluation.click_metrics import measured, surety

    groups = {"all": np.ones(len(shown), bool), **{name: shown["policy"] == name for name in POLICIES}}
    for policy, campaign in product(POLICIES, CAMPAIGNS):
        groups[f"{policy}-{campaign}"] = groups[policy] & (shown["campaign"] == campaign)
    metrics, sure = {}, {}
    for name, rows in groups.items():
        rows = np.asarray(rows)
        taken = shown["click"].to_numpy(bool)[rows, None]
        others = {row: other[rows] for row, other in (rivals or {}).items()} if name == "all" else {}
        metrics |= {f"{name}/{key}": value for key, value in measured(taken, chance[rows]).items()}
        sure |= {f"{name}/{key}": value for key, value in surety(taken, chance[rows], others).items()}
    return metrics, sure


if __name__ == "__main__":
    main()
