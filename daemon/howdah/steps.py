"""Parts of a job that are done once: what a step gave is kept at once, under the fence, and later attempts get it from there."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import orjson

from howdah.errors import DatabaseUnavailableError, LeaseLostError, StepError
from howdah.jsontext import LIMIT, encode_strictly

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from howdah.job import Job
    from howdah.store import Store

T = TypeVar("T")

NAME_LIMIT = 200
#: After a statement that found no database, or a row that somebody holds, in seconds.
RETRY_PAUSE = 0.05


class Steps:
    """The steps of one attempt. Those of earlier ones are read once, when the first is asked for."""

    def __init__(self, job: Job[Any], store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._job = job
        self._store = store
        self._loop = loop
        self._kept: dict[str, bytes] | None = None
        self._reading = asyncio.Lock()
        # One at a time of a name: the second gets what the first has kept. Touched by the loop alone.
        self._turns: dict[str, asyncio.Lock] = {}

    async def run(self, name: str, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Give what the step of this name gave before; if there was none, call the function and keep its result."""
        kept = await self._begin(name)
        try:
            if kept is None:
                value = function(*arguments)
                kept = await self._keep(name, await value if inspect.isawaitable(value) else value)
        finally:
            self._turns[name].release()
        return orjson.loads(kept)

    def run_in_thread(self, name: str, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Do the same for a caller in another thread than the loop's: there the function is called."""
        kept = self._on_loop(self._begin(name))
        try:
            if kept is None:
                value = function(*arguments)
                if inspect.isawaitable(value):
                    value = self._on_loop(_result_of(value))
                kept = self._on_loop(self._keep(name, value))
        finally:
            self._loop.call_soon_threadsafe(self._turns[name].release)
        return orjson.loads(kept)

    async def _begin(self, name: str) -> bytes | None:
        """Take the turn of a name, and give what was kept under it."""
        if not isinstance(name, str) or not 1 <= len(name) <= NAME_LIMIT or "\0" in name or not _has_utf8(name):
            raise StepError(str(name)[:NAME_LIMIT], f"a step's name is a text of 1 to {NAME_LIMIT} characters")
        await self._turns.setdefault(name, asyncio.Lock()).acquire()
        try:
            return (await self._read()).get(name)
        except BaseException:
            self._turns[name].release()
            raise

    async def _read(self) -> dict[str, bytes]:
        async with self._reading:
            if self._kept is None:
                self._kept = await self._ask(lambda: self._store.steps(self._job.id, self._job.lease))
            if self._kept is None:
                raise LeaseLostError(self._job.id, self._job.lease)
            return self._kept

    async def _keep(self, name: str, value: Any) -> bytes:
        """Keep a result, and give what is kept. A write whose reply was lost is repeated: the first one stands."""
        try:
            text = encode_strictly(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise StepError(name, f"its result is not JSON: {error}") from None
        if len(text) > LIMIT:
            raise StepError(name, f"its result is {len(text)} bytes of JSON, more than the {LIMIT} that are kept")
        kept = await self._ask(lambda: self._store.keep_step(self._job.id, self._job.lease, name, text))
        if kept is None:
            raise LeaseLostError(self._job.id, self._job.lease)
        (await self._read())[name] = kept
        return kept

    async def _ask(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Ask the database until it answers. A handler that is cancelled meanwhile leaves the question to end by itself."""
        while True:
            question = asyncio.ensure_future(call())
            question.add_done_callback(lambda done: done.cancelled() or done.exception())
            try:
                return await asyncio.shield(question)
            except (DatabaseUnavailableError, asyncpg.LockNotAvailableError):
                await asyncio.sleep(RETRY_PAUSE)

    def _on_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _has_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


async def _result_of(value: Awaitable[T]) -> T:
    return await value
