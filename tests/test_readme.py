"""What the documentation says can be typed: translations say the same, commands parse, examples run."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from catalign.cli import build_parser
from catalign.config import compose
from catalign.data.store import EmbeddingStore
from catalign.evaluation.base import Context

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TABLE = re.compile(r"<!-- table:.*?<!-- /table -->", re.DOTALL)


def code(path, language="[a-z]+"):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def commands(path):
    """The words of each catalign command, without shell patterns' and sweeps' further values."""
    for block in code(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["catalign"]:
                yield words[1:]


@pytest.mark.parametrize("path", sorted(ROOT.glob("README.*.md")), ids=lambda path: path.name)
def test_translation_has_the_same_code_and_tables(path):
    def bare(text):  # comments are translated
        return [re.sub(r"\s+# .*", "", block) for block in text]

    readme = ROOT / "README.md"
    assert bare(code(path)) == bare(code(readme))
    assert TABLE.findall(path.read_text(encoding="utf-8")) == TABLE.findall(readme.read_text(encoding="utf-8"))
    assert f"]({path.name})" in readme.read_text(encoding="utf-8")
    assert "](README.md)" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_are_accepted(path):
    for words in commands(path):
        options, rest = build_parser().parse_known_args(words)
        assert all("=" in word for word in rest), words
        overrides = [*getattr(options, "overrides", []), *rest]
        if getattr(options, "multirun", False):
            overrides = [re.sub(r"(=\w+),.*", r"\1", override) for override in overrides]
        if "overrides" in options and not any("uniform" in override for override in overrides):  # the reader's own task
            compose(overrides)


def test_the_documented_protocol_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("catalign.registry.register", lambda kind, name: lambda component: component)
    (example,) = code(ROOT / "docs/howto/protocol.md", "python")
    exec(example, names := {})
    toy = SimpleNamespace(
        name="toy",
        ids=list("abcd"),
        splits=np.array(["test"] * 4),
        groups=np.arange(4),
        attributes={"colour": np.array(["red", "red", "blue", "blue"])},
        rows=lambda split: np.arange(4),
    )
    vectors = np.eye(4, dtype=np.float32)
    store = EmbeddingStore.write(tmp_path / "store", toy.ids, {"text": vectors, "image": vectors[[0, 1, 3, 0]]})
    (result,) = names["agreement"](Context(toy, store), attribute="colour", k=1)
    assert result.metrics == {"colour/agreement@1": [0.75]}  # no photo is near c's title: the first one, which is red
    assert result.baselines == {"random": {"colour/agreement@1": [0.5]}}
