"""The ear: LISTEN on a connection of its own, proved by hearing itself, remade for ever."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any

import asyncpg

from howdah.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from howdah.database import Line
    from howdah.metrics import Metrics
    from howdah.vitals import Vitals

log = logging.getLogger("howdah.listener")

WAKES = "howdah"
CONTROL = "howdah_control"
#: A NOTIFY to oneself that is not heard within ANSWER seconds means deaf; it is sent every PROOF seconds, or every ttl.
ANSWER = 5.0
PROOF = 30.0
#: The longest pause between tries, in seconds.
PAUSE_CAP = 30.0


class Listener:
    """Hears wakes for this worker's queues and words on the control channel."""

    def __init__(
        self,
        *,
        line: Line,
        vitals: Vitals,
        metrics: Metrics,
        queues: frozenset[str],
        ttl: float,
        on_wake: Callable[[], None],
        on_control: Callable[[str], None],
    ) -> None:
        self._line = line
        self._vitals = vitals
        self._metrics = metrics
        self._queues = queues
        self._proof, self._answer = min(PROOF, ttl), min(ANSWER, ttl)
        self._on_wake = on_wake
        self._on_control = on_control
        self._echo = asyncio.Event()
        self._token = ""
        self._said_deaf = False

    async def run(self) -> None:
        """Listen until cancelled."""
        pause = 0.1
        while True:
            try:
                await self._listen()
            except (
                OSError,
                TimeoutError,
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                DatabaseUnavailableError,
            ) as error:
                if self._vitals.listening:
                    pause = 0.1
                self._deaf(error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_CAP)

    async def _listen(self) -> None:
        """Listen on one connection until it fails; always raises."""
        connection = await self._line.connection()
        gone = asyncio.Event()
        connection.add_termination_listener(lambda _: gone.set())
        try:
            async with asyncio.timeout(self._answer):
                await connection.add_listener(WAKES, self._hear_wake)
                await connection.add_listener(CONTROL, self._hear_control)
            while True:
                await self._prove()
                self._hearing()
                try:
                    async with asyncio.timeout(self._proof):
                        await gone.wait()
                    raise ConnectionError("the connection was closed")
                except TimeoutError:
                    continue
        finally:
            self._line.drop()

    async def _prove(self) -> None:
        """Notify ourselves and wait for it. Raises TimeoutError: a pooler, or a dead line, loses notifications in silence."""
        self._token = f"echo {secrets.token_hex(8)}"
        self._echo.clear()
        async with asyncio.timeout(self._answer):
            await self._line.notify(CONTROL, self._token)
            await self._echo.wait()

    def _hearing(self) -> None:
        if not self._vitals.listening:
            self._vitals.listening = True
            self._metrics.listener_up.set(1)
            if self._said_deaf:
                log.warning("hears wakes again")
            self._said_deaf = False
            self._look_at_all()

    def _deaf(self, error: BaseException) -> None:
        if self._vitals.listening:
            self._vitals.listening = False
            # They rest for as long as one may who hears.
            self._look_at_all()
        self._metrics.listener_up.set(0)
        if not self._said_deaf:
            self._said_deaf = True
            log.warning(
                "hears no wakes, jobs are found by polling",
                extra={"error": str(error) or "a NOTIFY to itself was not heard"},
            )

    def _look_at_all(self) -> None:
        """Have everybody look: what was notified until now may be lost."""
        self._on_wake()
        for word in ("cancel", "due", "settle"):
            self._on_control(word)

    def _hear_wake(self, _connection: Any, _pid: int, _channel: str, queue: Any) -> None:
        if queue in self._queues:
            self._metrics.wakes.inc()
            self._on_wake()

    def _hear_control(self, _connection: Any, _pid: int, _channel: str, word: Any) -> None:
        if word == self._token:
            self._echo.set()
        elif not str(word).startswith(("echo ", "ended ")):  # words for others
            self._on_control(str(word))
