"""Tables in README files, between markers, brought up to date with the result files."""

from __future__ import annotations

import re
from pathlib import Path

from catalign.artifacts import atomic
from catalign.config import config_folder
from catalign.errors import CatalignError, unknown
from catalign.reporting.overview import overview_table
from catalign.reporting.specs import tables_of

_MARKED = re.compile(r"(<!-- table:(?P<name>[\w/.-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def update_file(path: Path, name: str, table: str, check: bool = False) -> bool:
    """Put a table between ``<!-- table:NAME -->`` and ``<!-- /table -->`` wherever the file has this pair.

    Args:
        path: A Markdown file.
        name: The table's name in the opening marker.
        table: Markdown.
        check: Only compare.

    Returns:
        Whether the file differed.
    """
    old = path.read_text(encoding="utf-8")
    new = _MARKED.sub(lambda m: f"{m[1]}{table}{m[3]}" if m["name"] == name else m[0], old)
    if new != old and not check:
        with atomic(path) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new != old


def write_tables(check: bool = False, root: Path | None = None) -> int:
    """Bring the tables in every README*.md, the root's and the benchmarks', up to date with the result files.

    Args:
        check: Only say which files differ.
        root: The checkout; by default the one this package is in.

    Returns:
        1 if ``check`` found a difference, else 0: an exit status.

    Raises:
        CatalignError: This is no checkout, a marker names no table, or a column would mix protocols.
    """
    root = root or config_folder().parent
    folders = sorted(path.parent for path in (root / "benchmarks").glob("*/spec.yaml"))
    if not folders:
        raise CatalignError(f"{root} has no benchmarks/*/spec.yaml", "run this in a checkout of the repository")
    tables = {name: table for folder in folders for name, table in tables_of(folder).items()}
    tables["overview"] = overview_table(folders)
    differing = []
    for path in [path for folder in (root, *folders) for path in sorted(folder.glob("README*.md"))]:
        for name in [match["name"] for match in _MARKED.finditer(path.read_text(encoding="utf-8"))]:
            if name not in tables:
                raise unknown(f"table in {path}:", name, tables)
            if update_file(path, name, tables[name].markdown(), check):
                differing.append(path)
    for path in dict.fromkeys(differing):
        print(
            f"{path.relative_to(root)}: {'differs from the result files; run: catalign tables' if check else 'updated'}"
        )
    return int(check and bool(differing))
