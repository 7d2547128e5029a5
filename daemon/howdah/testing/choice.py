"""Which handlers a test means: all that are declared, those of some modules, or single functions."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from howdah.errors import HandlersError
from howdah.registry import Handler, Registry, load, registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

Handlers: TypeAlias = (
    "str | ModuleType | Callable[..., Any] | Registry | Iterable[str | ModuleType | Callable[..., Any]] | None"
)


def choose(handlers: Handlers) -> Registry:
    """Give the registry of these handlers; None means every handler that has been imported."""
    if isinstance(handlers, Registry):
        return handlers
    if handlers is None:
        if not registry.kinds:
            raise HandlersError("no handler has been imported: give the module, such as handlers=myapp.jobs")
        return registry
    wanted = [handlers] if isinstance(handlers, str | ModuleType) or callable(handlers) else list(handlers)
    chosen = Registry()
    # What is there for all handlers belongs to any of them.
    chosen.lifespans.update(registry.lifespans)
    chosen.error_reporters.extend(registry.error_reporters)
    for one in wanted:
        for handler in _handlers_of(one):
            chosen.add(handler)
    return chosen


def with_resources(chosen: Registry, resources: Mapping[str, Any]) -> Registry:
    """Give the same handlers with these resources, and no lifespans."""

    @asynccontextmanager
    async def given() -> AsyncIterator[Mapping[str, Any]]:
        yield resources

    changed = Registry()
    for handler in _all(chosen):
        changed.add(handler)
    changed.error_reporters.extend(chosen.error_reporters)
    changed.add_lifespan("resources", given)
    return changed


def handler_of(wanted: str | Callable[..., Any]) -> Handler:
    """Give one handler, by its function or its kind."""
    if isinstance(wanted, str):
        handler = registry.get(wanted)
        if handler is None:
            raise HandlersError(
                f"no handler of kind {wanted!r} is imported; there are {', '.join(registry.kinds) or 'none'}"
            )
        return handler
    found = [handler for handler in _all() if handler.function is wanted]
    if not found:
        raise HandlersError(f"{getattr(wanted, '__qualname__', wanted)} is no handler: decorate it with @handler")
    return found[0]


def modules_of(chosen: Registry) -> list[str]:
    """Give the modules that a process of its own must import to have these handlers."""
    return sorted({handler.function.__module__ for handler in _all(chosen)})


def _handlers_of(wanted: str | ModuleType | Callable[..., Any]) -> list[Handler]:
    if not isinstance(wanted, str | ModuleType):
        return [handler_of(wanted)]
    if isinstance(wanted, str):
        load([wanted])
        module = sys.modules.get(wanted)
        name = module.__name__ if module else wanted
    else:
        name = wanted.__name__
    found = [h for h in _all() if h.function.__module__ == name or h.function.__module__.startswith(f"{name}.")]
    if not found:
        raise HandlersError(f"module {name!r} declares no handlers")
    return found


def _all(among: Registry = registry) -> list[Handler]:
    return [handler for kind in among.kinds if (handler := among.get(kind)) is not None]
