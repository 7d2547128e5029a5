"""What handlers share for the length of a worker's life: entered before the first claim, left after the last handler."""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, cast

from howdah.errors import ConfigError, HandlersError, LifespanError, SchemaError
from howdah.registry import home, registry

if TYPE_CHECKING:
    from howdah.registry import Lifespan

log = logging.getLogger("howdah.lifespans")

F = TypeVar("F", bound=Callable[[], Any])

#: What all of them together get to be left in, and then to heed their cancellation, in seconds.
LEAVE_GRACE, CANCEL_GRACE = 5.0, 1.0


def lifespan(function: F) -> F:
    """Make an async generator function with one `yield` a lifespan: what it yields is `job.resources` of all handlers.

    A mapping is merged into the resources, anything else stands there under the function's name, None gives nothing. Several
    are entered in the order of their declaration and left in reverse. All of it happens on the main loop, in one task.
    """
    bare = inspect.unwrap(function)
    if not inspect.isasyncgenfunction(bare):
        raise HandlersError(f"lifespan {home(bare)} must be an async function with one yield")
    if any(parameter.default is parameter.empty for parameter in inspect.signature(function).parameters.values()):
        raise HandlersError(f"lifespan {home(bare)} must not ask for arguments")
    # One that is a context manager already is taken as it is.
    manager = asynccontextmanager(function) if function is bare else function
    registry.add_lifespan(bare.__name__, cast("Lifespan", manager))
    return function


class Resources(Mapping[str, Any]):
    """What the lifespans gave, by name; to be read only."""

    def __init__(self) -> None:
        self._given: dict[str, Any] = {}

    def add(self, lifespan: str, given: Any) -> None:
        """Take in what a lifespan yielded. Raises HandlersError when one of its names is taken."""
        if given is None:
            return
        fresh = given if isinstance(given, Mapping) else {lifespan: given}
        for name in fresh:
            if name in self._given:
                raise HandlersError(f"lifespan {lifespan} gives {name!r}, which another lifespan gives already")
        self._given.update(fresh)

    def __getitem__(self, name: str) -> Any:
        try:
            return self._given[name]
        except KeyError:
            known = ", ".join(self._given) or "none"
            raise KeyError(f"no lifespan gives {name!r}; resources: {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


class Lifespans:
    """Enters and leaves the lifespans, in one task, as what they hold may ask (a task group, a cancel scope)."""

    def __init__(self, lifespans: Mapping[str, Lifespan]) -> None:
        self._lifespans = lifespans
        self.resources = Resources()
        self._task: asyncio.Task[bool] | None = None
        self._entered = asyncio.Event()
        self._leaving = asyncio.Event()
        self._leave_by = 0.0

    async def enter(self, stop: asyncio.Event) -> None:
        """Enter all, unless told to stop meanwhile. Raises LifespanError, ConfigError, HandlersError, SchemaError."""
        if not self._lifespans:
            return
        self._task = asyncio.create_task(self._live(), name="lifespans")
        ends = [asyncio.ensure_future(event.wait()) for event in (self._entered, stop)]
        await asyncio.wait({self._task, *ends}, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        if self._task.done():
            self._task.result()

    async def run(self) -> None:
        """Watch over them until cancelled. Raises LifespanError when one ends out of turn."""
        if self._task is not None:
            await asyncio.wait({self._task})
            raise LifespanError(", ".join(self._lifespans), "ended out of turn")
        await asyncio.Event().wait()

    async def leave(self) -> bool | None:
        """Leave all, in a bounded time; tells whether that went well, None: one of them does not end whatever is done."""
        if self._task is None:
            return True
        self._leave_by = monotonic() + LEAVE_GRACE
        self._leaving.set()
        if not self._entered.is_set():
            self._task.cancel()
        await asyncio.wait({self._task}, timeout=LEAVE_GRACE + CANCEL_GRACE)
        if not self._task.done():
            return None
        # One that failed to be entered, or was interrupted in it, has said so.
        return self._task.cancelled() or self._task.exception() is not None or self._task.result()

    async def _live(self) -> bool:
        """Enter in order, wait, leave in reverse; tells whether leaving went well."""
        entered: list[tuple[str, AbstractAsyncContextManager[Any]]] = []
        cut_short: BaseException | None = None
        try:
            for name, lifespan in self._lifespans.items():
                manager = lifespan()
                try:
                    given = await manager.__aenter__()
                except (asyncio.CancelledError, ConfigError, HandlersError, SchemaError):
                    raise
                except BaseException as error:
                    # SystemExit, too: it would tear the loop down from under the others.
                    log.debug("lifespan failed", extra={"lifespan": name}, exc_info=True)
                    raise LifespanError(name, f"failed at start: {_describe(error)}") from None
                entered.append((name, manager))
                self.resources.add(name, given)
            self._entered.set()
            await self._leaving.wait()
        except BaseException as error:
            cut_short = error
            self._leave_by = monotonic() + LEAVE_GRACE
        well = True
        for name, manager in reversed(entered):
            well = await self._leave_one(name, manager) and well
        if cut_short is not None:
            raise cut_short
        return well

    async def _leave_one(self, name: str, manager: AbstractAsyncContextManager[Any]) -> bool:
        """Leave one as if nothing had happened, whatever did: its part after the `yield` runs also without a `finally`."""
        try:
            async with asyncio.timeout(max(self._leave_by - monotonic(), 0)):
                await manager.__aexit__(None, None, None)
        except BaseException as error:
            problem, text = "does not end" if isinstance(error, TimeoutError) else "failed at its end", _describe(error)
            log.exception("lifespan %s: %s", problem, text, extra={"lifespan": name})
            return False
        return True


def _describe(error: BaseException) -> str:
    """Say in one line what went wrong and where."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"
