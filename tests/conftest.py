"""Shared fixtures: one tiny synthetic catalogue, one tiny finished run. Nothing here touches the network."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # workers of pytest-xdist share the cores: see catalign.cli

TINY = [
    "experiment=quickstart",
    "trainer=debug",
    "data.source.products=240",
    "data.source.users=40",
    "data.vocabulary_size=400",
    "data.workers=1",
    "encoder.text.layers=1",
    "trainer.batch_size=32",
    "trainer.evaluations=2",
    "trainer.eval_batches=2",
    "stages.text.trainer={max_steps: 6}",
    "stages.image.trainer={max_steps: 4}",
    "stages.align.trainer={max_steps: 8}",
    "stages.behaviour.trainer={max_steps: 6, batch_size: 16}",
    "stages.recommend.trainer={max_steps: 4, batch_size: 16}",
]


@pytest.fixture
def registry_copy(monkeypatch):
    """What a test registers, later tests do not see."""
    from catalign import registry

    for kind, known in registry._components.items():
        registry.names(kind)  # imports ours before the copy, or they would be forgotten with it
        monkeypatch.setitem(registry._components, kind, dict(known))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_config(cache):
    """A function from overrides to a config whose every stage takes a few seconds."""
    from catalign.config import compose

    def make(output: Path, *overrides: str):
        return compose([*TINY, f"output={output}", f"data.cache={cache}", *overrides])

    make.overrides = TINY
    return make


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tmp_path_factory):
    """The whole pipeline on the tiny catalogue, run once per worker; tests must not change it."""
    from catalign.pipeline import run_experiment

    return run_experiment(tiny_config(tmp_path_factory.mktemp("runs") / "tiny"))
