"""What MkDocs builds from: pages where they lie in the checkout, notebooks as pages, and the API's pages.

Every file keeps its path in the checkout, so that relative links and images work on the site as in the repository.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from roles import ROLE

import catalign

ROOT = Path(__file__).parents[1]
SHOWN = ("*.md", "docs/**/*.*", "benchmarks/**/*.*", "notebooks/*.ipynb", "notebooks/rendered/*.png")


class Notebook(File):
    """A notebook that is a page: MkDocs would take its name's ending for that of a picture or a download."""

    def is_documentation_page(self) -> bool:
        """Yes."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take files at their paths in the checkout, add the API's pages, and let nav's patterns find them."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)  # it comes again as docs/…
    for path in sorted({path for pattern in SHOWN for path in ROOT.glob(pattern)}):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".ipynb":
            files.append(Notebook.generated(config, name, content=markdown(path)))
        else:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for name, text in api_pages():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    config.nav = matched(config.nav, sorted((file.src_uri for file in files), key=lambda uri: uri.removesuffix(".md")))
    return files


def matched(nav: Any, names: list[str]) -> Any:
    """A nav whose patterns, such as ``benchmarks/*/README.md``, are replaced by the files they match."""
    if isinstance(nav, list):
        return [matched(entry, names) for entry in nav]
    if isinstance(nav, dict):
        return {title: matched(entry, names) for title, entry in nav.items()}
    return fnmatch.filter(names, nav) if "*" in nav else nav


def markdown(notebook: Path) -> str:
    """A notebook, which is stored without outputs, as Markdown."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = ("".join(cell["source"]) for cell in cells)
    return "\n\n".join(
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```" for cell, text in zip(cells, texts)
    )


def api_pages() -> Iterator[tuple[str, str]]:
    """A page per package, and one for the public names and the modules beside the packages: name and Markdown."""
    root = cast(griffe.Module, griffe.load("catalign", search_paths=[ROOT / "ssl"]))
    public = [f"{module}.{name}" for name, module in sorted(catalign._EXPORTS.items())]
    summaries = (summary(root[path.removeprefix("catalign.")]) for path in public)
    names = [f"- [`{path.rpartition('.')[2]}`][{path}]: {text}" for path, text in zip(public, summaries)]
    modules = [module for module in within(root) if module.parent is root]
    beside = [entry(module) for module in modules if not module.is_init_module]
    yield "catalign", "\n\n".join(["# catalign", summary(root), "\n".join(names), *beside])
    for package in modules:
        if package.is_init_module:
            title = f"---\ntitle: {package.path}\n---"
            yield package.path, "\n\n".join([title, *map(entry, within(package))])


def entry(module: griffe.Module) -> str:
    """A module with all it defines; a package without the names it takes from its modules."""
    if not module.is_init_module:
        return f"::: {module.path}"
    level = 1 + module.path.count(".", len("catalign."))
    return f"::: {module.path}\n    options: {{members: false, heading_level: {level}}}"


def within(module: griffe.Module) -> Iterator[griffe.Module]:
    """A module and those in it, by name."""
    yield module
    for _, inner in sorted(module.members.items()):
        if not inner.is_alias and inner.is_module:
            yield from within(cast(griffe.Module, inner))


def summary(documented: griffe.Object) -> str:
    """The first line of a docstring."""
    return ROLE.sub(r"`\2`", documented.docstring.value.splitlines()[0])
