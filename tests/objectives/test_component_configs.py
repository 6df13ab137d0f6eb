"""The YAML files of encoders and objectives name options that exist, and all of them."""

from pathlib import Path

import pytest
import yaml

from catalign import registry
from catalign.objectives.views import MILD, Views

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = [(kind, path) for kind in ("encoder", "objective") for path in sorted(CONFIGS.glob(f"{kind}/**/*.yaml"))]


@pytest.mark.parametrize(("kind", "path"), FILES, ids=[str(path.relative_to(CONFIGS)) for _, path in FILES])
def test_config_is_valid_and_whole(kind, path):
    values = yaml.safe_load(path.read_text())
    parent = values.pop("defaults", [None])[0]
    if parent is not None:
        values = yaml.safe_load(path.with_name(f"{parent}.yaml").read_text()) | values
    name = values.pop("name")
    values.pop("weight", None)
    registry.validate(kind, name, values, str(path))
    if values.get("pretrained") in (None, False):  # a checkpoint brings its own sizes
        assert set(values) == set(registry.options(kind, name)), "an option that is missing cannot be overridden"
    if "views" in values:
        assert set(values["views"]) == set(Views.model_fields)


@pytest.mark.parametrize(("name", "views"), [("simclr", Views()), ("contrastive", MILD)])
def test_config_holds_the_defaults(name, views):
    values = yaml.safe_load((CONFIGS / "objective" / f"{name}.yaml").read_text())
    assert registry.validate("objective", name, {"views": values["views"]}, name)["views"] == views
