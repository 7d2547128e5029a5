"""Steps that must be done before anything else can be, and that wait for the database as long as it takes."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from howdah.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = logging.getLogger("howdah.patience")

#: The first pause after a failure, and the longest, in seconds.
FIRST, LONGEST = 0.1, 1.0


async def insist(step: Callable[[], Coroutine[Any, Any, object]], stop: asyncio.Event) -> bool:
    """Do a step again and again until the database takes it; False: told to stop meanwhile, and the step was left.

    A step may be done twice: its answer can be lost. What is no fault of the connection is raised.
    """
    told = asyncio.ensure_future(stop.wait())
    doing: asyncio.Future[object] | None = None
    pause, said = FIRST, False
    try:
        while not stop.is_set():
            doing = asyncio.ensure_future(step())
            await asyncio.wait({doing, told}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                doing.cancel()
                await asyncio.wait({doing})
                return False
            try:
                doing.result()
            except DatabaseUnavailableError as error:
                if not said:
                    log.warning("database is away, waiting", extra={"error": str(error)})
                    said = True
            else:
                return True
            await asyncio.wait({told}, timeout=pause)
            pause = min(pause * 2, LONGEST)
        return False
    finally:
        told.cancel()
        if doing is not None:
            doing.cancel()  # only whoever is cancelled himself leaves one behind
