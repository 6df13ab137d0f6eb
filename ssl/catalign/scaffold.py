"""``catalign new``: the files of a pretext task or a protocol, with what is to be filled in."""

from __future__ import annotations

import builtins
import importlib.util
import re
import sys
from keyword import iskeyword
from pathlib import Path
from string import Template

from catalign import plugins, registry
from catalign.artifacts import atomic
from catalign.config import presets
from catalign.errors import CatalignError

CODE = {
    "objective": '''\
"""$title: say in a sentence what it teaches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from catalign.objectives.base import Batch, Forward, Objective
from catalign.registry import register


@register("objective", "$name")
class $title(Objective):
    """Say what is learned (Author et al. YEAR, https://arxiv.org/abs/…).

    When to use: say when, and in place of what.

    Args:
        encoders: Needs ``image``.
        width: Output of the projection head.

    Returns of ``forward``:
        ``loss``: say of what and in which unit.
    """

    modalities = ("image",)
    stream = "$name"

    def __init__(self, encoders: nn.ModuleDict, *, width: int = 128) -> None:
        super().__init__(encoders)
        self.head = nn.Linear(self.encoder("image").width, width)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Make views, masks or pairs for the whole batch at once, all randomness from the generator."""
        return {**batch}

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Score them; rows that ``has_image`` denies do not count, rows of one ``group`` are no negatives."""
        features = self.head(encode("image").pooled)
        raise NotImplementedError("$name: compute a loss of features (B, width)")
        return {"loss": features.mean()}
''',
    "protocol": '''\
"""$title: say in a sentence what it measures."""

from __future__ import annotations

from catalign.evaluation.base import Context, Result, data_of, protocol
from catalign.registry import register


@register("protocol", "$name")
def $name(context: Context, *, split: str = "test") -> list[Result]:
    """Say what is asked (Author et al. YEAR, https://arxiv.org/abs/…).

    Data: say which rows.

    Metrics, keyed ``<what>/<metric>``: say what each is and how ties are broken.

    Baselines under the same keys: say which.

    Args:
        context: What is measured.
        split: The products that are scored.
    """
    vectors, rows = context.store["image"], context.catalogue.rows(split)
    raise NotImplementedError("$name: measure vectors[rows]")
    metrics = {"image/accuracy": float(vectors[rows].mean())}
    baselines = {"random": {"image/accuracy": 0.5}}
    record = protocol("$name", data=data_of(context.catalogue), split=split)
    return [Result("$name", context.name, record, metrics, baselines)]
''',
}
YAML = {
    "objective": "name: $name\nweight: 1.0\nwidth: 128\n",
    "protocol": "# @package evaluation.$name\nname: $name\nsplit: test\n",
}
TEST = {
    "objective": '''\
"""What $name must keep."""

from $module import $title

from catalign.testing import check_objective


def test_contract():
    check_objective($title)


def test_loss_is_the_papers():
    raise NotImplementedError("compute the loss of a small case the plain way, and compare")
''',
    "protocol": '''\
"""What $name must keep."""

from $module import $name

from catalign.testing import check_protocol


def test_contract(tmp_path):
    check_protocol($name, tmp_path)


def test_numbers_of_a_case_known_by_hand():
    raise NotImplementedError("let it measure a case whose numbers are known, and compare")
''',
}


OTHER = "choose another name"


def write(kind: str, name: str, package: str | None = None) -> tuple[list[Path], list[str]]:
    """Write the code, the YAML and a test that fails until both are filled in.

    Args:
        kind: ``objective`` or ``protocol``.
        name: Its name in configs.
        package: The user's own package, in the working folder; None for ours, in a checkout.

    Returns:
        The files written, relative to the working folder, and the commands that come next.

    Raises:
        CatalignError: A name that is no identifier or is taken, a file or another package that exists, or no checkout
            and no package.
    """
    for given in (name, *([] if package is None else [package])):
        if not given.isidentifier() or iskeyword(given) or given != given.lower():
            remedy = "Python keeps that word for itself" if iskeyword(given) else "use small letters, digits and _"
            raise CatalignError(f"{given!r} is no name of a Python module", remedy)
    if package is not None:
        _check_package(package)
    defined = _title(name) if kind == "objective" else name
    if not defined.isidentifier() or iskeyword(defined) or defined in vars(builtins):
        raise CatalignError(f"{kind} {name!r} would define {defined!r}, a name that Python keeps or refuses", OTHER)
    if re.search(rf"^from .* import .*\b{defined}\b", CODE[kind], re.MULTILINE):
        raise CatalignError(f"{kind} {name!r} would hide {defined}, which its file imports", OTHER)
    if name in registry.names(kind):
        raise CatalignError(f"{kind} {name!r} is registered already", OTHER)
    if package is not None and name in presets(registry.GROUPS[kind]):
        raise CatalignError(f"configs/{registry.GROUPS[kind]}/{name}.yaml is one of ours", OTHER)
    files = _files(kind, name, package)
    for path in files:
        if path.exists() and path.name != "__init__.py":
            raise CatalignError(f"{path} exists", "choose another name, or delete it first")
    module = f"{package or plugins.OURS}.{_folder(kind)}.{name}"
    values = {"name": name, "title": _title(name), "module": module}
    written = [path for path in files if not path.exists()]
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_text(Template(files[path]).substitute(values), encoding="utf-8")
    return written, [f"python -m pytest {written[-1]}", *_commands(kind, name, package)]


def _title(name: str) -> str:
    """A class's name for a module's."""
    return "".join(map(str.title, name.split("_")))


def _check_package(package: str) -> None:
    """Refuse the name of a package that is not in the working folder: files beside it would hide it, or be hidden."""
    if package in sys.stdlib_module_names or package == "__main__":
        raise CatalignError(f"{package!r} is a module of Python itself", OTHER)
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or [found.origin or ""]) if found else []
    if places and not any(Path(place).resolve().parent == Path.cwd().resolve() for place in places):
        problem = f"{package!r} is another package, of {Path(places[0]).parent}"
        raise CatalignError(problem, "choose a name of your own, or run in the folder that holds your package")


def _folder(kind: str) -> str:
    """The folder of a kind's code, in our package and in a plugin."""
    return registry.PACKAGES[kind].rpartition(".")[2]


def _files(kind: str, name: str, package: str | None) -> dict[Path, str]:
    """Templates by path."""
    code, group = _folder(kind), registry.GROUPS[kind]
    if package is not None:
        root = Path(package)
        inits = dict.fromkeys((root / "__init__.py", root / code / "__init__.py"), "")
        configs, test = root / "configs", Path("tests")
    elif Path("ssl", plugins.OURS).is_dir():
        root, inits, configs, test = Path("ssl", plugins.OURS), {}, Path("configs"), Path("tests", code)
    else:
        raise CatalignError(
            f"{Path.cwd()} is not the top folder of a checkout of catalign",
            f"run there, or name a package of your own, new or not: catalign new {kind} {name} --package my_package",
        )
    yaml = configs / group / f"{name}.yaml"
    return {
        **inits,
        root / code / f"{name}.py": CODE[kind],
        yaml: YAML[kind],
        test / f"test_{name}.py": TEST[kind],
    }


def _commands(kind: str, name: str, package: str | None) -> list[str]:
    plugin = f"'+plugins=[{package}]' " if package else ""
    if kind == "objective":
        return [f"catalign run {plugin}+objective@stages.image.objectives.{name}={name}"]
    return [
        f"catalign run {plugin}+evaluation={name}",
        f"catalign bench {name} RUN{f' --plugin {package}' * bool(package)}",
    ]
