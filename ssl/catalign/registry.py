"""The one registry: what a config may name, found by walking the package and the plugins that mirror it.

A component is a class or function decorated with :func:`register`. Its *options* are the keyword parameters of its
signature, with their type annotations and defaults, so a component's schema is stated once, where it is used.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from catalign import plugins
from catalign.errors import CatalignError, unknown

PACKAGES = {
    "source": "catalign.data.sources",
    "encoder": "catalign.encoders",
    "objective": "catalign.objectives",
    "fusion": "catalign.embeddings.fusion",
    "protocol": "catalign.evaluation",
}
"""Every kind of component and the package or module its implementations live in; plugins mirror them."""
GROUPS = {kind: kind for kind in PACKAGES} | {"protocol": "evaluation", "source": "data"}
"""The config group that holds the YAML files of each kind."""

_components: dict[str, dict[str, Any]] = {kind: {} for kind in PACKAGES}
Component = TypeVar("Component", bound=Callable[..., Any])


def register(kind: str, name: str) -> Callable[[Component], Component]:
    """Make a class or function known to configs as ``name``.

    Args:
        kind: One of :data:`PACKAGES`.
        name: The name used in configs.

    Raises:
        CatalignError: Another component already has this name, or the kind does not exist.
    """
    if kind not in _components:
        raise unknown("kind of component", kind, _components)

    def add(component: Component) -> Component:
        other = _components[kind].get(name)
        if other is not None and (other.__module__, other.__qualname__) != (
            component.__module__,
            component.__qualname__,
        ):
            problem = f"{kind} {name!r} is registered twice: {other.__module__} and {component.__module__}"
            raise CatalignError(problem, "give one of them another name")
        _components[kind][name] = component
        return component

    return add


def _discover(kind: str) -> None:
    for package in plugins.packages():
        plugins.import_all(PACKAGES[kind].replace(plugins.OURS, package, 1))


def names(kind: str) -> list[str]:
    """The names registered for a kind, sorted.

    Raises:
        CatalignError: The kind does not exist.
    """
    if kind not in _components:
        raise unknown("kind of component", kind, _components)
    _discover(kind)
    return sorted(_components[kind])


def get(kind: str, name: str) -> Any:
    """The class or function registered as ``name``.

    Raises:
        CatalignError: No such name; the message gives the nearest one.
    """
    known = names(kind)
    if name not in known:
        raise unknown(kind, name, known)
    return _components[kind][name]


def options(kind: str, name: str) -> dict[str, inspect.Parameter]:
    """The options of a component: its keyword parameters that a config may set, with resolved annotations.

    Positional parameters without a default are what the program passes (encoders, a run), not options, unless they
    are keyword-only.
    """
    component = get(kind, name)
    function = component.__init__ if inspect.isclass(component) else component
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(component).parameters
    return {
        key: parameter.replace(annotation=hints.get(key, Any))
        for key, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def validate(kind: str, name: str, given: dict[str, Any], where: str) -> dict[str, Any]:
    """Check and convert a component's options without building it.

    Args:
        kind: The kind of component.
        name: Its registered name.
        given: Options from a config.
        where: The config key they stand under, for the message.

    Raises:
        CatalignError: An unknown option (with the nearest name), a missing one, or one of the wrong type.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    known = options(kind, name)
    for key in given:
        if key not in known:
            raise unknown(f"option of {kind} {name!r} ({where})", key, known)
    fields: dict[str, Any] = {
        key: (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
        for key, parameter in known.items()
    }
    model = create_model(name, __config__=ConfigDict(arbitrary_types_allowed=True, protected_namespaces=()), **fields)
    try:
        checked = model(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([where, *map(str, first["loc"])])
        raise CatalignError(f"config key {key}: {first['msg']}", f"{kind} {name!r} takes {_signature(known)}") from None
    return {key: getattr(checked, key) for key in given}


def build(kind: str, name: str, /, *args: Any, where: str = "", **given: Any) -> Any:
    """Build a registered component from its positional inputs and checked options.

    Raises:
        CatalignError: As :func:`get` and :func:`validate`.
    """
    return get(kind, name)(*args, **validate(kind, name, given, where or kind))


def _signature(known: dict[str, inspect.Parameter]) -> str:
    return ", ".join(str(parameter) for parameter in known.values()) or "no options"
