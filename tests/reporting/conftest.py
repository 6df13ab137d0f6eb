"""A run folder with everything a report reads, without training: untrained weights and invented curves and results."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from catalign.artifacts import read_json, seal, write_json
from catalign.config import compose
from catalign.data.store import EmbeddingStore
from catalign.embeddings.fusion.weighted import Weighted
from catalign.evaluation.base import Result, protocol
from catalign.training.model import WEIGHTS, build_model
from catalign.training.run import Run


def curves(name, objectives):
    history = []
    for step in range(0, 61, 2):
        values = {f"train/{objective}/loss": 2.0 - step / 100 for objective in objectives}
        if step % 20 == 0:
            values |= {f"val/{objective}/loss": 2.5 - step / 100 for objective in objectives}
            values |= {f"monitor/{name}/feature_std": 0.5, f"monitor/{name}/rankme": 1.5}
        history.append({"step": step, "seconds": step * 1.0, "values": values})
    return history


def results(run, recall=0.345):
    metrics = {"text-to-image/recall@1": 0.1, "text-to-image/recall@10": recall, "text-to-image/median_rank": 7.0}
    random = {"text-to-image/recall@1": 0.01, "text-to-image/recall@10": 0.05, "text-to-image/median_rank": 50.0}
    probe = {f"{a}/{f}/linear/accuracy": 0.7 for a in ("category", "colour") for f in ("image", "text")}
    majority = dict.fromkeys(probe, 0.2)
    for benchmark, ours, name, theirs in (
        ("retrieval", metrics, "random", random),
        ("probe", probe, "majority", majority),
    ):
        chosen, seeds = protocol(benchmark, split="test"), [run.config.seed]
        result = Result(benchmark, run.config.name, chosen, ours, {name: theirs}, seeds=seeds)
        result.save(run.path / "results" / benchmark / "tiny.json")


@pytest.fixture(scope="session")
def report_run(tiny_config, tmp_path_factory):
    config = tiny_config(tmp_path_factory.mktemp("report") / "run", "data.source.products=120")
    config = config.model_copy(update={"name": "<b>bold & fast</b>"})
    run = Run.create(config)
    catalogue = run.catalogue()
    for name in config.stages:
        folder = run.stage_path(name)
        build_model(config, name, catalogue).save(folder / WEIGHTS)
        write_json(folder / "metrics.json", curves(name, config.stages[name].objectives))
        seal(folder, stage=name)
        run.note(stages={name: {"seconds": 61.0, "parameters": {name: 1234567}}})
    rng = np.random.default_rng(0)
    product = rng.normal(size=(catalogue.groups.max() + 1, 16))[catalogue.groups]
    vectors = {}
    for name, noise in (("text", 0.3), ("image", 1.5)):
        noisy = product + noise * rng.normal(size=product.shape)
        vectors[name] = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
    EmbeddingStore.write(run.path / "embeddings", catalogue.ids, vectors)
    Weighted().fit(vectors).save(run.path / "fusion")
    results(run)
    write_json(run.path / "index_report.json", {"recall": 0.987, "qps": 1234.0, "ms": 0.5, "megabytes": 1.0, "k": 10})
    return run


@pytest.fixture(scope="session")
def remake(report_run, tmp_path_factory):
    """A function from changed config values and a recall to a copy of the run, as if it had been made with them."""

    def make(recall=0.345, **changes):
        folder = tmp_path_factory.mktemp("remade") / "run"
        shutil.copytree(report_run.path, folder)
        write_json(folder / "config.json", {**read_json(folder / "config.json"), **changes})
        run = Run.open(folder)
        results(run, recall)
        return run

    return make


@pytest.fixture(scope="session")
def shop_run(cache, tmp_path_factory):
    """An unfinished run on a catalogue of its own, with titles that are markup and a photo that is not there."""
    folder, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    with (folder / "products.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "image", "title"])
        for number in range(60):  # escaped twice, as shops do: what is left of it once cleaned is a tag
            rows.writerow([f"s{number}", f"{number}.png", f"&amp;lt;script&amp;gt; shirt number {number}"])
            if number != 7:
                Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    source = [f"data.source.path={folder / 'products.csv'}", f"data.source.images={folder}", "data.workers=1"]
    places = [f"output={folder / 'run'}", f"data.cache={cache}", "data.vocabulary_size=300"]
    return Run.create(compose(["experiment=own", "name=shop", *source, *places]))
