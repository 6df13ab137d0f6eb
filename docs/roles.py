"""Sphinx roles in docstrings, such as ``:func:`merge```, as the cross-references that mkdocstrings understands."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")


class Roles(Extension):
    """Rewrites the roles of every docstring; ``~`` shows the last part of a name alone, as in Sphinx."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Called for everything griffe finds."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(_reference, obj.docstring.value)


def _reference(role: re.Match[str]) -> str:
    last = role[2].rpartition(".")[2]
    shown = f"`{last if role[1] else role[2]}`"
    return shown if last.startswith("_") else f"[{shown}][{role[2]}]"  # what is private has no entry of its own
