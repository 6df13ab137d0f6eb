"""Errors a tired person understands: what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

SHOWN = 40
"""Names listed in a message at most: a mistyped brand must not print three hundred."""


class CatalignError(Exception):
    """A mistake in the input, told in one sentence with its remedy; the command line prints it without a traceback.

    Args:
        problem: What is wrong and where (file, row or key).
        remedy: What the user can do about it.
    """

    def __init__(self, problem: str, remedy: str | None = None) -> None:
        super().__init__(problem if remedy is None else f"{problem}\n  -> {remedy}")
        self.problem, self.remedy = problem, remedy


def unknown(what: str, name: str, known: Iterable[str]) -> CatalignError:
    """The error for a name that does not exist: names the nearest one, then the others.

    Args:
        what: The kind of thing named, such as ``"objective"`` or ``"config key"``.
        name: The name that was given.
        known: The names that exist.
    """
    names = sorted(map(str, known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    shown = ", ".join(names[:SHOWN]) or "none"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return CatalignError(f"unknown {what} {name!r}", f"{hint}known: {shown}{more}")


def needed(library: str, extra: str) -> ModuleType:
    """Import a library that only one of our extras brings.

    Raises:
        CatalignError: It is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(library)
    except ImportError:
        raise CatalignError(f"this needs the library {library}", f"pip install 'catalign[{extra}]'") from None
