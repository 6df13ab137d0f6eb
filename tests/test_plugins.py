"""Components of users' own packages: named by a config, or installed with an entry point."""

import sys
from importlib.metadata import EntryPoint

import pytest

from catalign import listing, plugins, registry
from catalign.cli import main
from catalign.config import check, compose
from catalign.errors import CatalignError
from catalign.pipeline import validate
from catalign.training.stage import _sources

TASK = '''
import shop_tasks.helpers
from catalign.objectives.base import Objective
from catalign.registry import register
from shop_tasks.losses import spread


@register("objective", "uniform")
class Uniform(Objective):
    """Spread image features over the sphere (Wang & Isola 2020, https://arxiv.org/abs/2005.10242).

    Args:
        encoders: Needs ``image``.
        t: Sharpness.
    """

    modalities = ("image",)
    stream = "uniform"

    def __init__(self, encoders, *, t: float = 2.0):
        super().__init__(encoders)
        self.t = t

    def forward(self, encode, batch):
        return {"loss": spread(encode("image").pooled, shop_tasks.helpers.double(self.t))}
'''
FILES = {
    "__init__.py": "",
    "objectives/uniform.py": TASK,
    "losses.py": "def spread(features, t):\n    return features.square().mean() * t\n",
    "helpers.py": "def double(t):\n    return 2 * t\n",
    "data/sources.py": (
        "from catalign import register\n\n\n@register('source', 'nothing')\nclass Nothing:\n    '''No rows.'''\n"
    ),
    "configs/objective/uniform.yaml": "name: uniform\nweight: 0.1\nt: 2.0\n",
    "configs/objective/sharp.yaml": "defaults: [uniform, _self_]\nt: 5.0\n",
    "configs/objective/hot.yaml": "defaults: [simclr, _self_]\ntemperature: 1.0\n",
    "configs/experiment/spread.yaml": (
        "# @package _global_\n# A plugin's own.\ndefaults: [quickstart, _self_]\nname: spread\n"
    ),
}
NAMED = "+plugins=[shop_tasks]"
CHOSEN = "+objective@stages.image.objectives.uniform=uniform"


@pytest.fixture
def forget(monkeypatch, registry_copy):
    """Makes this process like a new one, which has imported no plugin."""

    def clear():
        for name in [name for name in sys.modules if name.partition(".")[0] == "shop_tasks"]:
            del sys.modules[name]
        monkeypatch.setattr(plugins, "_named", [])
        for kind, known in registry._components.items():
            ours = {n: c for n, c in known.items() if not c.__module__.startswith("shop_tasks")}
            monkeypatch.setitem(registry._components, kind, ours)
        plugins.import_all.cache_clear()
        plugins.installed.cache_clear()

    yield clear
    monkeypatch.undo()
    clear()


@pytest.fixture
def package(tmp_path, monkeypatch, forget):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for kind in registry.PACKAGES:
        registry.names(kind)
    forget()
    for name, text in FILES.items():
        path = tmp_path / "shop_tasks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "shop_tasks"


def test_a_config_names_a_plugin_and_uses_its_task_and_yaml(package):
    config = compose([NAMED, CHOSEN])
    validate(config)
    assert config.plugins == ["shop_tasks"]
    assert config.stages["image"].objectives["uniform"].options == {"t": 2.0}
    assert "nothing" in registry.names("source")
    assert compose([NAMED, "experiment=spread", CHOSEN.replace("=uniform", "=sharp")]).name == "spread"
    with pytest.raises(CatalignError, match="did you mean 't'"):
        validate(compose([NAMED, CHOSEN, "stages.image.objectives.uniform.tt=1"]))
    with pytest.raises(CatalignError, match="did you mean 'uniform'"):
        compose([NAMED, CHOSEN.replace("=uniform", "=uniforn")])


def test_a_run_opened_anew_imports_its_plugins(package, forget):
    saved = compose([NAMED, CHOSEN]).model_dump(mode="json")
    forget()
    assert "uniform" not in registry.names("objective")
    validate(check(saved))


def test_a_sweep_knows_the_plugins(package, monkeypatch):
    ran = []
    monkeypatch.setattr("catalign.pipeline.run_experiment", ran.append)
    monkeypatch.setattr(sys, "argv", ["catalign"])
    assert main(["run", NAMED, CHOSEN, "-m", "stages.image.objectives.uniform.t=1.0,3.0"]) == 0
    assert [config.stages["image"].objectives["uniform"].options["t"] for config in ran] == [1.0, 3.0]


def test_an_installed_plugin_needs_no_word(package, monkeypatch, forget):
    monkeypatch.syspath_prepend(package.parent)
    point = EntryPoint("shop", "shop_tasks", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == plugins.GROUP else [])
    plugins.installed.cache_clear()
    validate(compose([CHOSEN]))


def test_a_plugin_that_cannot_be_imported_is_named(package):
    with pytest.raises(CatalignError, match=r"plugin 'shop_task' cannot be imported[^$]*-> install it, or run in"):
        compose(["+plugins=[shop_task]"])
    with pytest.raises(CatalignError, match="plugins"):
        compose(["+plugins=shop_tasks"])
    (package / "objectives" / "broken.py").write_text("import nosuchlibrary\n")
    with pytest.raises(CatalignError, match=r"'shop_tasks\.objectives\.broken'.*nosuchlibrary"):
        validate(compose([NAMED, CHOSEN]))
    (package / "objectives" / "broken.py").write_text("def half(\n")
    with pytest.raises(CatalignError, match=r"'shop_tasks\.objectives\.broken'.*SyntaxError.*broken.py, line 1"):
        validate(compose([NAMED, CHOSEN]))
    (package / "objectives" / "broken.py").write_text("\n{}['key']\n")
    with pytest.raises(CatalignError, match=r"KeyError: 'key' \(.*broken.py, line 2\)\n.*mend it"):
        validate(compose([NAMED, CHOSEN]))


def test_a_stage_depends_on_the_code_that_its_plugin_uses(package):
    compose([NAMED])
    code = "".join(_sources(registry.get("objective", "uniform")))
    for part in ("class Uniform", "def spread", "def double", "def run_objectives"):
        assert part in code
    assert "class Nothing" not in code


def test_list_tells_what_a_plugin_has(package, capsys):
    assert main(["list", "objectives", "-v", "--plugin", "shop_tasks"]) == 0
    told = capsys.readouterr().out.partition("\nuniform ")[2]
    for part in ("reads: image", "papers: Wang & Isola 2020, https://arxiv.org/abs/2005.10242", "t: float = 2.0"):
        assert part in told
    assert "presets: objective=sharp, objective=uniform" in told
    assert listing.presets("objective", "simclr") == ["objective=simclr", "objective=hot"]
    assert main(["list", "experiments", "--plugin", "shop_tasks"]) == 0
    assert "A plugin's own." in capsys.readouterr().out
