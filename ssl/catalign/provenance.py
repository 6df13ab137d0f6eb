"""What a number depends on besides the method: the machine, the packages, the config."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from catalign.config import Config

PACKAGES = ("torch", "timm", "transformers", "faiss", "catalign")
ABSENT = object()
"""Stands for the value of a key that a config lacks."""


@cache
def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe_hardware() -> dict[str, Any]:
    """CPU model, usable cores, memory in GB and GPU (None without one) of this machine."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu(), "cores": cores, "memory_gb": round(memory / 1e9, 1) if memory else None, "gpu": gpu}


@cache
def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    distributions = metadata.packages_distributions()
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        found = distributions.get(package)
        if found:
            versions[package] = metadata.version(found[0])
    return versions


def portable(config: Config) -> dict[str, Any]:
    """A config as plain values without this machine's folders: of an absolute path the name is left.

    Nor does it say which runs' stages may be copied (``reuse``): that changes no number, and every seed has its own.
    """
    excluded: Any = {"output": True, "reuse": True, "data": {"cache", "workers"}}
    values: dict[str, Any] = config.model_dump(mode="json", exclude=excluded)
    root = config.data.root

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        if not isinstance(value, str):
            return value
        value = value.replace(root, "${data.root}") if root else value
        return Path(value).name if Path(value).is_absolute() else value

    values = clean(values)
    values["data"]["root"] = None
    return values


def differences(configs: Sequence[Mapping[str, Any]], *ignored: str) -> dict[str, list[Any]]:
    """Keys in which :func:`portable` configs differ -> each one's value, :data:`ABSENT` where it has no such key.

    Args:
        configs: At least one.
        ignored: Keys of the outermost level to leave out.
    """
    kept = [{key: value for key, value in config.items() if key not in ignored} for config in configs]
    leaves = [dict(_leaves(config)) for config in kept]
    found = {key: [config.get(key, ABSENT) for config in leaves] for config in leaves for key in config}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def git_revision() -> str | None:
    """The checkout's revision, marked ``-dirty`` when files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
