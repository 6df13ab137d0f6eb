import pytest

from catalign import registry
from catalign.errors import CatalignError


@pytest.fixture
def toy(registry_copy):
    @registry.register("fusion", "toy")
    class Toy:
        """A toy."""

        def __init__(self, given: int, *, rate: float = 0.5, size: tuple[int, int] = (1, 2), needed: str):
            self.given, self.rate, self.size, self.needed = given, rate, size, needed

    return Toy


def test_options_are_the_keyword_only_parameters(toy):
    assert list(registry.options("fusion", "toy")) == ["rate", "size", "needed"]


def test_build_converts_and_passes_options(toy):
    built = registry.build("fusion", "toy", 7, rate="0.25", size=[3, 4], needed="x")
    assert (built.given, built.rate, built.size, built.needed) == (7, 0.25, (3, 4), "x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratee": 1, "needed": "x"}, "did you mean 'rate'"),
        ({"rate": "high", "needed": "x"}, "valid number"),
        ({"rate": 0.1}, "needed"),
    ],
)
def test_bad_options_are_explained(toy, options, message):
    with pytest.raises(CatalignError, match=message):
        registry.build("fusion", "toy", 7, **options)


def test_a_name_is_registered_once(toy):
    with pytest.raises(CatalignError, match="registered twice"):
        registry.register("fusion", "toy")(lambda: None)


def test_unknown_kind_and_name():
    with pytest.raises(CatalignError, match="did you mean 'objective'"):
        registry.names("objektive")
    with pytest.raises(CatalignError, match="did you mean 'simclr'"):
        registry.get("objective", "simclrr")
