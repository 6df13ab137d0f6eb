"""The scripts in ``benchmarks/``, which are no package, as modules."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def load_script():
    def load(path):
        spec = importlib.util.spec_from_file_location(Path(path).stem, BENCHMARKS / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
