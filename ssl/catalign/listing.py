"""What configs may name, told from docstrings, signatures and YAML files alone."""

from __future__ import annotations

import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from catalign import registry
from catalign.config import config_folders

WIDTH = 110
_HEADING = re.compile(r"^(Args|Attributes|Returns|Returns of ``forward``|Raises|References):$", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
_CITED = re.compile(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")


def describe(kind: str, name: str, *, verbose: bool = False) -> str:
    """A component in one line, or with its modalities, papers, options and the YAML files that name it."""
    component = registry.get(kind, name)
    docstring = inspect.getdoc(component) or ""
    sections = _sections(docstring)
    summary, _, rest = sections[""].partition("\n")
    line = f"{name:<20} {summary}"
    if not verbose:
        return line
    modalities = getattr(component, "modalities", ()) or filter(None, [getattr(component, "modality", None)])
    facts = {
        "returns": sections.get("Returns of ``forward``", ""),
        "reads": ", ".join(modalities),
        "papers": "; ".join(papers(docstring)),
        "presets": ", ".join(presets(kind, name)),
    }
    told = [_filled(f"{heading}: {text}", 4, 8) for heading, text in facts.items() if text]
    return "\n".join([line, *_indented(rest), *told, *_options(kind, name, sections.get("Args", "")), ""])


def experiment(path: Path) -> str:
    """An experiment's name and the comment at the top of its file."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    text = " ".join(line[2:] for line in lines if not line.startswith("# @package"))
    name = f"{path.stem:<22}"
    return textwrap.fill(text, WIDTH, initial_indent=f"{name} ", subsequent_indent=" " * (len(name) + 1)) or name


def papers(docstring: str) -> list[str]:
    """What a docstring cites: anything in brackets that holds a year, and the lines of ``References``."""
    references = _sections(docstring).get("References", "").strip().splitlines()
    cited = _CITED.findall(" ".join(docstring.split()))
    return list(dict.fromkeys([*cited, *map(str.strip, references)]))


def presets(kind: str, name: str) -> list[str]:
    """The YAML files that name a component, as overrides choose them: ``objective=mae``."""
    files = [
        (path.parent.relative_to(folder), path.stem)
        for folder in config_folders()
        for path in sorted((folder / registry.GROUPS[kind]).rglob("*.yaml"))
    ]
    return [f"{group}={stem}" for group, stem in files if _named(kind, group, stem) == name]


def _named(kind: str, group: Path, stem: str) -> str | None:
    """The component that a YAML file names, itself or by the one that it extends."""
    found = (folder / group / f"{stem}.yaml" for folder in config_folders())
    path = next((path for path in found if path.is_file()), None)
    values: Any = OmegaConf.to_container(OmegaConf.load(path)) if path else {}
    chosen = values.get("source", {}) if kind == "source" else values
    parent = next(iter(values.get("defaults", [])), None)
    return chosen.get("name") or (_named(kind, group, parent) if isinstance(parent, str) else None)


def _sections(docstring: str) -> dict[str, str]:
    """A docstring's sections by their headings; what comes before them under an empty one."""
    parts = _HEADING.split(docstring)
    return dict(zip(["", *parts[1::2]], parts[::2]))


def _indented(paragraphs: str) -> list[str]:
    return [textwrap.indent(paragraphs.strip("\n"), "    ")] if paragraphs.strip() else []


def _options(kind: str, name: str, documented: str) -> Iterator[str]:
    texts = dict(_ENTRY.findall(documented))
    options = registry.options(kind, name)
    if options:
        yield "    options:"
    for option, parameter in options.items():
        yield f"      {textwrap.shorten(str(parameter), WIDTH, placeholder=' …')}"
        if option in texts:
            yield _filled(texts[option], 10, 10)


def _filled(text: str, first: int, others: int) -> str:
    text = " ".join(text.split())
    return textwrap.fill(text, WIDTH, initial_indent=" " * first, subsequent_indent=" " * others)
