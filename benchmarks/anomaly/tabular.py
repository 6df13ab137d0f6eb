"""Anomalies in tables, by the distance to the nearest rows that audits listings, beside pyod's detectors.

``python benchmarks/anomaly/tabular.py data.root=PATH -o benchmarks/anomaly/results/tabular`` writes a result per
detector. Sets: those of ADBench (Han et al. 2022) in ``PATH/adbench``, and Online Shoppers (UCI), where the sessions
that end in a purchase are the anomalies, its categories as indicators. As in ADBench: 70% of the rows, stratified, are
fitted without their labels, and the other 30% are scored. Columns are scaled to the mean 0 and variance 1 of the fitted
rows. Detectors as they come: IForest, LOF and ECOD with pyod's defaults; ours: the mean distance to the 5 nearest rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SEEDS = (0, 1, 2)
CATEGORIES = ["Month", "OperatingSystems", "Browser", "Region", "TrafficType", "VisitorType", "Weekend"]
Scorer = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Rows to fit (N, D), rows to score (M, D) and a seed -> (M,) scores, higher for anomalies."""


def main() -> None:
    """Score every set with every detector and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="data.root=PATH, with adbench/*.npz and online-shoppers/*.csv in it")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    options = parser.parse_args()

    from catalign.evaluation.base import Result, protocol, save_results
    from catalign.provenance import describe_hardware, describe_versions, git_revision

    sets = read_sets(Path(options.root.removeprefix("data.root=")).expanduser())
    record = protocol(
        "anomaly",
        "tabular",
        sets={name: list(x.shape) for name, (x, _) in sets.items()},
        split="70% fitted without labels, 30% scored, stratified",
        scaling="mean 0, variance 1 of the fitted rows",
    )
    shares = {f"{name}/{key}": v for name, (_, y) in sets.items() for key, v in (("auroc", 0.5), ("ap", y.mean()))}
    for row, scorer in detectors().items():
        metrics: dict[str, Any] = {}
        began = time.perf_counter()
        for name, (x, y) in sets.items():
            for seed in SEEDS:
                for key, value in measured(x, y, scorer, seed).items():
                    metrics.setdefault(f"{name}/{key}", []).append(value)
        seconds = time.perf_counter() - began
        details = {"training": "70% of each set, no labels"}
        result = Result("anomaly", row, record, metrics, {"random": dict(shares)}, details, list(SEEDS))
        result.wall_clock_s, result.git = round(seconds, 1), git_revision()
        result.hardware, result.versions = describe_hardware(), {**describe_versions(), "pyod": version("pyod")}
        print(*save_results([result], options.output), f"{seconds:.0f} s")


def detectors() -> dict[str, Scorer]:
    """Our scorer and pyod's detectors, by the names of their rows."""
    from catalign.errors import CatalignError
    from catalign.retrieval.neighbours import nearest
    from catalign.retrieval.suspicion import isolation

    try:
        from pyod.models.ecod import ECOD
        from pyod.models.iforest import IForest
        from pyod.models.lof import LOF
    except ImportError:
        raise CatalignError("pyod is not installed", "pip install 'catalign[bench]'") from None

    return {
        "knn_distance": lambda train, test, seed: isolation(nearest(train, test)[0]),
        "pyod_iforest": lambda train, test, seed: IForest(random_state=seed).fit(train).decision_function(test),
        "pyod_lof": lambda train, test, seed: LOF().fit(train).decision_function(test),
        "pyod_ecod": lambda train, test, seed: ECOD().fit(train).decision_function(test),
    }


def read_sets(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By name, rows (N, D) and which of them are anomalies (N,)."""
    sets = {}
    for path in sorted((root / "adbench").glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            sets[path.stem.partition("_")[2]] = arrays["X"].astype(np.float32), arrays["y"].astype(bool)
    table = pd.read_csv(root / "online-shoppers" / "online_shoppers_intention.csv")
    bought = table.pop("class").astype(str).str.upper() == "TRUE"
    sets["online-shoppers"] = pd.get_dummies(table, columns=CATEGORIES).to_numpy(np.float32), bought.to_numpy()
    return sets


def measured(x: np.ndarray, y: np.ndarray, scorer: Scorer, seed: int) -> dict[str, float]:
    """AUROC and average precision of one detector on one split of a set."""
    from sklearn.metrics import average_precision_score, roc_auc_score
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    train, test, _, truth = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
    scaler = StandardScaler().fit(train)
    scores = scorer(scaler.transform(train), scaler.transform(test), seed)
    return {"auroc": roc_auc_score(truth, scores), "ap": average_precision_score(truth, scores)}


if __name__ == "__main__":
    main()
