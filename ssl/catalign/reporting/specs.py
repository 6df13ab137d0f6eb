"""What a benchmark's folder asks of its tables: ``spec.yaml``, and published numbers beside the result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from catalign.artifacts import read_json
from catalign.config import config_folder
from catalign.errors import CatalignError, unknown
from catalign.evaluation.base import load_results
from catalign.reporting.tables import Table, ablation_table, comparison_table, grid_table, ranking_table


def spec_of(folder: Path) -> dict[str, Any]:
    """What a benchmark's ``spec.yaml`` says.

    Raises:
        CatalignError: It is no YAML mapping, or has no tables.
    """
    path = folder / "spec.yaml"
    try:
        spec: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException) as error:
        raise CatalignError(f"{path} cannot be read: {error}", "mend it there") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("tables"), dict):
        raise CatalignError(f"{path} has no mapping 'tables'", "see another benchmark's spec.yaml")
    return spec


def published_rows(benchmark: str, protocol: str, root: Path | None = None) -> list[dict[str, Any]]:
    """Published rows that may stand beside results of a protocol: ``row``, ``metrics``, ``source``, …; or none."""
    folder = (root or config_folder().parent) / "benchmarks" / benchmark
    return [row for group in _published_groups(folder) if group["protocol"] == protocol for row in group["rows"]]


def _published_groups(folder: Path) -> list[dict[str, Any]]:
    """What ``published.json`` holds: the rows of one protocol, or a list of such, one for each protocol."""
    path = folder / "published.json"
    found = read_json(path) if path.is_file() else []
    return found if isinstance(found, list) else [found]


def name_of(identity: str) -> str:
    """The name in a protocol's id: what comes before the digest."""
    return identity.rpartition("-")[0]


def tables_of(folder: Path) -> dict[str, Table]:
    """The tables that a benchmark's ``spec.yaml`` asks for, by name.

    A table with ``columns`` ranks the results whose protocol has the name ``protocol`` beside the published rows; one
    with ``rows`` too shows what they reach under each condition; one with ``labels`` compares rows of results by
    metrics of several protocols; one with ``metrics`` compares the results of the named ``protocols``, one column each,
    of the experiment ``row`` alone if it names one.
    A ranking may have columns of intervals and tests, such as ``ndcg@10/low`` and ``ndcg@10/minus/bm25/p``.
    ``digits`` of a ranking are the decimals of its numbers, 3 if it does not say.

    Raises:
        CatalignError: The numbers of a column are of different protocols, or published ones are of none of the tables'.
    """
    spec = spec_of(folder)
    results = load_results(folder / "results")
    published = {name_of(group["protocol"]): group for group in _published_groups(folder)}
    for name in published:
        if name not in (known := {wanted.get("protocol") for wanted in spec["tables"].values()} - {None}):
            raise unknown(f"protocol in {folder / 'published.json'}:", name, known)
    tables = {}
    for name, wanted in spec["tables"].items():
        chosen = [result for result in results if result.protocol["name"] == wanted.get("protocol")]
        if "labels" in wanted:
            tables[name] = ablation_table(results, wanted["labels"], wanted["columns"])
        elif "rows" in wanted:
            tables[name] = grid_table(chosen, wanted["rows"], wanted["columns"])
        elif "columns" in wanted:
            beside = published.get(wanted["protocol"])
            tables[name] = ranking_table(chosen, beside, wanted["columns"], wanted.get("digits", 3))
        elif "protocols" in wanted and "metrics" in wanted:
            row = wanted.get("row")
            own = [result for result in results if row is None or result.config.get("name") == row]
            tables[name] = comparison_table(own, wanted["protocols"], wanted["metrics"])
        else:
            remedy = "give it columns, with labels or rows if need be; or protocols and metrics"
            raise CatalignError(f"{folder / 'spec.yaml'}: tables.{name} asks for nothing", remedy)
    return tables
