"""Dear looks behind the marks, made beside the claims: what they find is claimed by its ids, and nothing waits for them."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

from howdah.errors import DatabaseUnavailableError
from howdah.marks import MOST_FOUND

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from howdah.marks import Marks
    from howdah.store import Store

log = logging.getLogger("howdah.scout")

#: After a statement that found no database, in seconds.
RETRY_PAUSE = 0.05


class Scout:
    """Looks behind marks, one look at a time, on a connection that no claim needs."""

    def __init__(self, *, store: Store, on_return: Callable[[], None]) -> None:
        self._store = store
        self._on_return = on_return
        self._asked: tuple[Marks, Sequence[str], list[str]] | None = None
        self._some = asyncio.Event()

    @property
    def away(self) -> bool:
        """Whether a look is being made, after which `on_return` is called."""
        return self._asked is not None

    def send(self, marks: Marks, kinds: Sequence[str], queues: Iterable[str]) -> None:
        """Have what lies behind these marks looked for. Not while `away`."""
        self._asked = (marks, kinds, list(queues))
        self._some.set()

    async def run(self) -> None:
        """Look whenever sent, for as long as the service lives."""
        while True:
            await self._some.wait()
            self._some.clear()
            if self._asked is not None:
                await self._look(*self._asked)
                self._asked = None
                self._on_return()

    async def _look(self, marks: Marks, kinds: Sequence[str], queues: list[str]) -> None:
        while True:
            began = monotonic()
            try:
                found = await self._store.find_behind(kinds, MOST_FOUND, marks.behind(queues))
            except DatabaseUnavailableError as error:
                log.debug("look behind the marks failed", extra={"error": str(error)})
                await asyncio.sleep(RETRY_PAUSE)
            else:
                marks.found(queues, found, began=began, ended=monotonic())
                return
