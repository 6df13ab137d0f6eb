"""Users' own packages, whose components configs may name as they name ours.

A plugin is a package that mirrors ours: ``my_package/objectives/``, ``my_package/evaluation/``, …, and
``my_package/configs/`` for its YAML files. It is known once it is installed with an entry point of the group
``catalign.plugins``, or where a config names it: ``+plugins=[my_package]``.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from catalign.errors import CatalignError

GROUP = "catalign.plugins"
OURS = "catalign"
_named: list[str] = []


def use(names: Iterable[str]) -> None:
    """Import plugins by name and know them from here on; the working folder is looked in too.

    Raises:
        CatalignError: One of them cannot be imported.
    """
    for name in names:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # a console script's own path starts at its folder
        _import(name, "install it, or run in the folder that holds it, or take it out of plugins=[…]")
        if name not in _named:
            _named.append(name)


def use_named(overrides: Sequence[str]) -> None:
    """Import the plugins that Hydra overrides name, and let Hydra look for YAML files in all plugins, after ours.

    Raises:
        CatalignError: One of them cannot be imported.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group == "plugins" and isinstance(named := override.value(), list):
            use(map(str, named))
    _extend_search_path()


@cache
def _extend_search_path() -> None:
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class PluginConfigs(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in config_folders():
                search_path.append(provider=GROUP, path=f"file://{folder}")

    Plugins.instance().register(PluginConfigs)


@cache
def installed() -> list[str]:
    """Packages that are installed as plugins, imported.

    Raises:
        CatalignError: One of them cannot be imported.
    """
    found = {point.module: point.dist.name if point.dist else point.module for point in entry_points(group=GROUP)}
    for name, distribution in sorted(found.items()):
        _import(name, f"mend or remove what installed it: pip uninstall {distribution}")
    return sorted(found)


def packages() -> list[str]:
    """The packages that may hold components: ours, the installed plugins and the named ones."""
    return list(dict.fromkeys([OURS, *installed(), *_named]))


def config_folders() -> list[Path]:
    """The ``configs`` folders of the plugins that have one."""
    paths = [Path(path) for name in packages()[1:] for path in getattr(sys.modules[name], "__path__", [])]
    return [path / "configs" for path in paths if (path / "configs").is_dir()]


@cache
def import_all(name: str) -> None:
    """Import a module and, if it is a package, the modules in it. A plugin need not have it.

    Raises:
        CatalignError: It is a plugin's and cannot be imported.
    """
    remedy = "install what it needs, or mend it"
    try:
        module = _import(name, remedy)
    except _Absent:
        return
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        _import(f"{name}.{found.name}", remedy)


class _Absent(CatalignError):
    """There is no module of this name."""


def _import(name: str, remedy: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except CatalignError:
        raise  # it says what is wrong, such as a name registered twice
    except (Exception, SystemExit) as error:  # whatever a user's module does while it is imported
        if name.partition(".")[0] == OURS:
            raise
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise _Absent(f"plugin {name!r} cannot be imported: {error}", remedy) from error
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, ImportError | SyntaxError) else f" ({last.filename}, line {last.lineno})"
        problem = f"plugin {name!r} cannot be imported: {type(error).__name__}: {error}{where}"
        raise CatalignError(problem, "install what it needs, or mend it") from error
