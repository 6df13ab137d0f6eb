"""What ``catalign new`` writes fails until it is filled in, and then is found, checked and run."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import yaml

from catalign import registry
from catalign.cli import main
from catalign.testing import check_objective, check_protocol


@pytest.fixture
def folder(tmp_path, monkeypatch, registry_copy):
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readmes_task_keeps_the_contract(folder):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    values = {}
    exec(re.search(r"```python\n(from catalign\.objectives\.base.*?)```", text, re.DOTALL)[1], values)
    check_objective(values["Uniform"])


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_in_a_checkout_files_go_where_ours_are(folder, capsys):
    (folder / "ssl" / "catalign").mkdir(parents=True)
    assert main(["new", "objective", "new_task"]) == 0
    assert main(["new", "protocol", "new_test"]) == 0
    assert files_in(folder) == {
        "ssl/catalign/objectives/new_task.py",
        "configs/objective/new_task.yaml",
        "tests/objectives/test_new_task.py",
        "ssl/catalign/evaluation/new_test.py",
        "configs/evaluation/new_test.yaml",
        "tests/evaluation/test_new_test.py",
    }
    told = capsys.readouterr().out
    assert "wrote ssl/catalign/objectives/new_task.py" in told
    assert "catalign run +objective@stages.image.objectives.new_task=new_task" in told
    assert (
        "from catalign.objectives.new_task import NewTask" in (folder / "tests/objectives/test_new_task.py").read_text()
    )


def test_in_a_package_a_task_fails_until_it_is_filled_in(folder, capsys):
    assert main(["new", "objective", "first_task", "--package", "my_package"]) == 0
    assert "'+plugins=[my_package]' +objective@" in capsys.readouterr().out
    test = _run(folder / "tests/test_first_task.py")
    for name in ("test_contract", "test_loss_is_the_papers"):
        with pytest.raises(NotImplementedError):
            test[name]()
    path = folder / "my_package/objectives/first_task.py"
    lines = path.read_text().splitlines()
    (unwritten,) = [n for n, line in enumerate(lines) if "raise NotImplementedError" in line]
    lines[unwritten : unwritten + 2] = ['        return {"loss": features[batch["has_image"]].square().mean()}']
    path.write_text("\n".join(lines))
    for name in ("my_package.objectives.first_task", "my_package.objectives"):
        sys.modules.pop(name)
    registry._components["objective"].pop("first_task")
    importlib.invalidate_caches()
    module = importlib.import_module("my_package.objectives.first_task")
    check_objective(module.FirstTask)
    options = yaml.safe_load((folder / "my_package/configs/objective/first_task.yaml").read_text())
    assert set(options) == {"name", "weight", *registry.options("objective", "first_task")}


def _run(path):
    values = {}
    exec(compile(path.read_text(), path, "exec"), values)  # as pytest would import it, under a name of its own
    return values


def test_in_a_package_a_protocol_fails_until_it_is_filled_in(folder, tmp_path, capsys):
    assert main(["new", "protocol", "first_test", "--package", "my_package"]) == 0
    assert "catalign bench first_test RUN --plugin my_package" in capsys.readouterr().out
    with pytest.raises(NotImplementedError):
        _run(folder / "tests/test_first_test.py")["test_contract"](tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["objective", "new_task"], "name a package of your own"),
        (["objective", "new-task", "--package", "mine"], "'new-task' is no name"),
        (["objective", "class", "--package", "mine"], "keeps that word"),
        (["protocol", "protocol", "--package", "mine"], "would hide protocol"),
        (["objective", "none", "--package", "mine"], "would define 'None'"),
        (["objective", "_1", "--package", "mine"], "would define '1'"),
        (["protocol", "list", "--package", "mine"], "would define 'list'"),
        (["objective", "siglip", "--package", "mine"], "configs/objective/siglip.yaml is one of ours"),
        (["objective", "new_task", "--package", "sys"], "'sys' is a module of Python"),
        (["objective", "batch", "--package", "mine"], "would hide Batch"),
        (["objective", "", "--package", "mine"], "'' is no name"),
        (["objective", "new_task", "--package", ""], "'' is no name"),
        (["objective", "new_task", "--package", "torch"], "'torch' is another package"),
        (["objective", "new_task", "--package", "catalign"], "'catalign' is another package"),
        (["objective", "NewTask", "--package", "mine"], "small letters"),
        (["objective", "simclr", "--package", "mine"], "'simclr' is registered already"),
        (["protocol", "kagl", "--package", "mine"], "'kagl' is registered already"),
        (["objective", "taken", "--package", "mine"], "mine/objectives/taken.py exists"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(folder, capsys, arguments, message):
    (folder / "mine" / "objectives").mkdir(parents=True)
    (folder / "mine" / "objectives" / "taken.py").touch()
    assert main(["new", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert files_in(folder) == {"mine/objectives/taken.py"}


@pytest.mark.parametrize("name", ["probe", "retrieval"])
def test_our_own_protocols_keep_the_contract(name, tmp_path):
    check_protocol(registry.get("protocol", name), tmp_path)
