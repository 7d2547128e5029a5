"""Connections to PostgreSQL: how they are made, what they decode, and what their failures mean."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
import tenacity

from howdah.anyjson import read
from howdah.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

log = logging.getLogger("howdah.database")

CONNECT_TIMEOUT = 10.0
CALL_TIMEOUT = 60.0
#: For a polite goodbye, in seconds.
CLOSE_TIMEOUT = 2.0
#: Connecting may take as many seconds even where a call may not.
LEAST_CONNECT_TIMEOUT = 2.0
#: How many prepared statements a connection keeps; none, behind a pooler that gives each transaction another server connection.
STATEMENTS = 100
#: Where the engine looks names up: nowhere that others may create. What somebody puts into `public` could be a better match for a call of
#: ours than the server's own function, and would run with our rights.
SEARCH_PATH = "pg_catalog, howdah, pg_temp"
# Of each address: whether who answers there is the server itself.
_DIRECT: dict[str, bool] = {}
# A peer that has vanished (its machine is gone, a firewall forgot us) is noticed after so many seconds of silence, by whichever side:
# else a client would wait for ever, and a server would keep the locks of a transaction that nobody will end for two hours.
_SILENCE, _PROBE, _PROBES = 15, 5, 3
_GONE = _SILENCE + _PROBE * _PROBES
#: The same, as a server is told; not for a pooler.
KEEPALIVES = {
    "tcp_keepalives_idle": str(_SILENCE),
    "tcp_keepalives_interval": str(_PROBE),
    "tcp_keepalives_count": str(_PROBES),
    "tcp_user_timeout": str(_GONE * 1000),
}
_SOCKET = {
    "TCP_KEEPIDLE": _SILENCE,
    "TCP_KEEPALIVE": _SILENCE,  # its name on macOS
    "TCP_KEEPINTVL": _PROBE,
    "TCP_KEEPCNT": _PROBES,
    "TCP_USER_TIMEOUT": _GONE * 1000,
}
# What the engine's statements rely on, whatever a role or a database has been given as its default: they see what was committed
# before each of them, and are ended by nobody but us. A pooler knows no such words; behind one the defaults must be these.
_SESSION = {
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    "search_path": SEARCH_PATH,
}

# SQLSTATE classes, and states, after which the same call on a new connection may succeed: connection, rolled back (a deadlock),
# resources, operator intervention, system error, internal error, and "read only" (the address leads to a standby).
_PASSING = ("08", "40", "53", "57", "58", "XX", "25006")


class Line:
    """One dedicated connection of the engine, made anew after every doubt.

    One call at a time. A call that fails for want of a database raises DatabaseUnavailableError, and nobody knows whether it
    took effect; the next call connects first, waiting as long as it takes. Belongs to the loop that first uses it.

    A call that is not answered within `patience` seconds fails, too: whoever should answer may be gone without a word. A server
    that is only slow gets there in the end, because the next call may take twice as long, up to CALL_TIMEOUT.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        raw_json: bool = False,
        on_reconnect: Callable[[str], None] | None = None,
        statement_cache_size: int = STATEMENTS,
        patience: float = CALL_TIMEOUT,
    ) -> None:
        self.name = name
        self._patience = self._given = min(patience, CALL_TIMEOUT)
        self._url = url
        self._raw_json = raw_json
        self._on_reconnect = on_reconnect
        self._statement_cache_size = statement_cache_size
        self._connection: asyncpg.Connection | None = None
        self._connected_before = False
        self._turn = asyncio.Lock()

    async def fetch(self, sql: str, *arguments: Any) -> Sequence[asyncpg.Record]:
        """Run one statement and give its rows. Raises DatabaseUnavailableError, or the server's refusal as it came."""
        async with self._turn:
            connection = await self._ready()
            asked = monotonic()
            try:
                async with asyncio.timeout(self._given) as limit:
                    rows = await connection.fetch(sql, *arguments)
            except asyncpg.LockNotAvailableError as error:
                raise DatabaseUnavailableError(f"{self.name}: {error}") from error
            except asyncpg.PostgresError as error:
                # It may show a whole row, and with it what a payload keeps secret.
                error.detail = None
                if not is_passing(error):
                    raise
                self._forget()
                raise DatabaseUnavailableError(f"{self.name}: {error}") from error
            except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError) as error:
                self._forget()
                if limit.expired():
                    silence, self._given = self._given, min(self._given * 2, CALL_TIMEOUT)
                    log.warning(
                        "no answer, connecting anew", extra={"connection": self.name, "seconds": round(silence, 2)}
                    )
                raise DatabaseUnavailableError(f"{self.name}: {str(error) or type(error).__name__}") from error
            except asyncio.CancelledError:
                # Half a call: what it did is unknown, and the protocol may be anywhere.
                self._forget()
                raise
            # Twice what this one took: a server that slows down is not to be given up at every other call.
            self._given = min(max(self._patience, 2 * (monotonic() - asked)), CALL_TIMEOUT)
            return rows

    async def connection(self) -> asyncpg.Connection:
        """Give the connection itself, connecting first if need be: for LISTEN, which belongs to a connection."""
        async with self._turn:
            return await self._ready()

    async def notify(self, channel: str, word: str) -> None:
        """Send a NOTIFY to this address's database, as the engine's functions do; where a pooler answers, from another connection than this one.

        A pooler may deliver to a session what was sent in it, and nothing that anybody else sends.
        """
        statement = "select howdah.notify($1, $2)"
        if _DIRECT.get(self._url, True):
            await (await self.connection()).execute(statement, channel, word)
        else:
            async with connected(self._url, name="echo") as other:
                await other.execute(statement, channel, word)

    async def close(self) -> None:
        """Hang up politely; at once if the server does not answer."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            try:
                await connection.close(timeout=CLOSE_TIMEOUT)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                connection.terminate()

    def drop(self) -> None:
        """Cut the connection without a word; the next call makes a new one."""
        self._forget()

    async def _ready(self) -> asyncpg.Connection:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        if self._connected_before and self._on_reconnect is not None:
            self._on_reconnect(self.name)
        self._connection = await connect(
            self._url,
            name=self.name,
            raw_json=self._raw_json,
            statement_cache_size=self._statement_cache_size,
            limit=min(max(2 * self._patience, LEAST_CONNECT_TIMEOUT), CONNECT_TIMEOUT),
            # A statement that we give up must not be waiting for a lock on the server still: it would take effect when nobody knows of it.
            lock_timeout=self._patience * 5 / 6,
        )
        self._connected_before = True
        return self._connection

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def connect(
    url: str,
    *,
    name: str,
    raw_json: bool = False,
    statement_cache_size: int = STATEMENTS,
    limit: float = CONNECT_TIMEOUT,
    lock_timeout: float = 0.0,
) -> asyncpg.Connection:
    """Connect, trying for as long as the database is away: often at first, then every second or so; each try gets `limit` seconds.

    No statement waits for a lock longer than `lock_timeout` seconds; 0: for as long as it takes.

    What no waiting heals (wrong password, no such database) is raised as the server said it.
    """
    async for attempt in tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(is_away),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
        before_sleep=_say_waiting(name),
        reraise=True,
    ):
        with attempt:
            # All of it: the wire may fall silent after any word.
            async with asyncio.timeout(limit):
                kept = await statements_kept(url, statement_cache_size)
                settings = {"lock_timeout": f"{lock_timeout * 1000:.0f}ms"}
                return await _open(url, settings, name=name, raw_json=raw_json, statement_cache_size=kept)
    raise AssertionError("unreachable: the loop above ends by return or raise")


async def _open(
    url: str, session: dict[str, str], *, name: str, raw_json: bool, statement_cache_size: int
) -> asyncpg.Connection:
    settings = {"application_name": f"howdah {name}"} | (_SESSION | KEEPALIVES | session if _DIRECT.get(url) else {})
    connection = await asyncpg.connect(
        url, timeout=CONNECT_TIMEOUT, statement_cache_size=statement_cache_size, server_settings=settings
    )
    try:
        await set_codecs(connection, raw_json=raw_json)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def statements_kept(url: str, wanted: int = STATEMENTS) -> int:
    """Tell how many prepared statements connections to `url` may keep: `wanted`, or none if a pooler answers there.

    A pooler hands out process numbers of its own making, as the keys for cancelling; a proxy or address translation does not. Asked
    once for each address, with a connection that keeps nothing itself.
    """
    if wanted and url not in _DIRECT:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            connection = await asyncpg.connect(
                url, timeout=CONNECT_TIMEOUT, statement_cache_size=0, server_settings={"application_name": "howdah"}
            )
            try:
                _DIRECT[url] = await connection.fetchval("select pg_backend_pid()") == connection.get_server_pid()
            finally:
                connection.terminate()
        if not _DIRECT[url]:
            log.warning("a pooler stands before the database: no statement is kept prepared")
    return wanted if _DIRECT.get(url, True) else 0


def settings_for(url: str) -> dict[str, str]:
    """Give what connections for whoever brings their own statements are made with, once `statements_kept` has asked."""
    return KEEPALIVES if _DIRECT.get(url) else {}


@asynccontextmanager
async def connected(
    url: str, *, name: str = "client", call_timeout: float | None = None
) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection for the length of a `with`; one try, errors as they come. No call takes longer than `call_timeout` seconds."""
    async with asyncio.timeout(CONNECT_TIMEOUT):
        connection = await asyncpg.connect(
            url,
            timeout=CONNECT_TIMEOUT,
            statement_cache_size=0,
            command_timeout=call_timeout,
            server_settings={"application_name": f"howdah {name}"},
        )
        try:
            # Not of a session that a pooler lends to somebody else after us.
            if await connection.fetchval("select pg_catalog.pg_backend_pid()") == connection.get_server_pid():
                await connection.execute(f"set search_path = {SEARCH_PATH}")
            await set_codecs(connection)
        except BaseException:
            connection.terminate()
            raise
    try:
        yield connection
    finally:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            await connection.close(timeout=CLOSE_TIMEOUT)


async def set_codecs(connection: asyncpg.Connection, *, raw_json: bool = False) -> None:
    """Let jsonb travel as Python objects; with `raw_json` what comes back stays bytes, to be decoded once and late."""
    keep_alive(connection)
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=_encode_jsonb,
        decoder=_strip_version if raw_json else _decode_jsonb,
        format="binary",
    )


def keep_alive(connection: asyncpg.Connection) -> None:
    """Have the operating system notice a server that has vanished; the driver has no words for it."""
    transport = getattr(connection, "_transport", None)
    wire = transport.get_extra_info("socket") if transport is not None else None
    if wire is None or wire.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _SOCKET.items():
        if (number := getattr(socket, option, None)) is not None:
            wire.setsockopt(socket.IPPROTO_TCP, number, value)


def is_passing(error: asyncpg.PostgresError) -> bool:
    """Tell whether an error of the server is one that goes by, so that the same call may succeed later."""
    return bool(error.sqlstate) and str(error.sqlstate).startswith(_PASSING)


def is_away(error: BaseException) -> bool:
    """Tell whether a failed connect means that the database is not there now, rather than that the address is wrong."""
    if isinstance(error, asyncpg.PostgresError):
        return is_passing(error)
    return isinstance(error, (OSError, TimeoutError, asyncpg.InterfaceError))


def _say_waiting(name: str) -> Callable[[tenacity.RetryCallState], None]:
    def say(state: tenacity.RetryCallState) -> None:
        # Once, not a line a second: an outage fills no disk.
        if state.attempt_number == 2 and state.outcome is not None:
            log.warning(
                "database is away, waiting", extra={"connection": name, "error": str(state.outcome.exception())}
            )

    return say


def _encode_jsonb(value: Any) -> bytes:
    """Give jsonb's wire format: a version byte, then text. Bytes are taken as JSON that is encoded already."""
    return b"\x01" + (value if isinstance(value, bytes) else orjson.dumps(value))


def _decode_jsonb(data: Any) -> Any:
    return read(memoryview(data)[1:])


def _strip_version(data: Any) -> bytes:
    return bytes(data[1:])
