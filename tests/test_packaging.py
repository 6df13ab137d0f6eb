import shutil
import ssl
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_source_root_is_no_package():
    assert not (ROOT / "ssl" / "__init__.py").exists()
    answer = subprocess.run(
        [sys.executable, "-c", "import ssl; print(ssl.__file__, ssl.OPENSSL_VERSION)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split()[0] == ssl.__file__


def test_importing_the_package_is_fast_and_loads_no_torch():
    program = "import time; t = time.perf_counter(); import catalign, sys; assert 'torch' not in sys.modules\n"
    program += "print(time.perf_counter() - t)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(answer.stdout) < 0.5


def test_every_exported_name_exists():
    import catalign

    for name in catalign.__all__:
        assert getattr(catalign, name) is not None
    with pytest.raises(AttributeError, match="nosuch"):
        _ = catalign.nosuch


def test_a_wheel_works_outside_the_checkout_configs_included(tmp_path):
    """Built with the environment's own setuptools from a copy, and unpacked as pip would: no network, no traces."""
    source, wheel = tmp_path / "source", tmp_path / "dist"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("ssl", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "-q", "-w", wheel]
    built = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(wheel.glob("*.whl"))) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "import catalign.config as c, pathlib\n"
        "assert 'site' in c.__file__, c.__file__\n"
        "print(c.compose(['experiment=fashion']).name, c.config_folder())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()[0] == "fashion"
    assert (tmp_path / "site" / "catalign" / "reporting" / "templates").is_dir()
