"""The doctor on the wire: who stands in between, whether statements stay prepared, whether a NOTIFY is heard; and the port."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import asyncpg

from howdah.doctor.finding import fail, ok, unseen, warn

if TYPE_CHECKING:
    from howdah.doctor.finding import Finding

#: A NOTIFY that is not heard within so many seconds is lost.
ANSWER = 3.0
#: Other people's sessions are to be found within so many transactions, if there is a pooler that gives them to us.
TRIES = 10

#: What a server says that has neither. On a standby: it does not do that.
_LACKING = (
    asyncpg.FeatureNotSupportedError,
    asyncpg.UndefinedFunctionError,
    asyncpg.PostgresSyntaxError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ReadOnlySQLTransactionError,
)

_POOLER = "let HOWDAH_LISTEN_DATABASE_URL lead straight to the server (or have the pooler keep sessions)"


async def examine_pooler(connection: asyncpg.Connection) -> list[Finding]:
    """See whether a session stays ours from one transaction to the next, and whether statements stay prepared."""
    port = await connection.fetchval("select inet_client_port()")
    pids = {await connection.fetchval("select pg_backend_pid()") for _ in range(TRIES)}
    # asyncpg shows no other way to our own end of the wire.
    mine = getattr(connection, "_transport").get_extra_info("sockname")  # noqa: B009  # the stubs know nothing of it
    between = port is not None and isinstance(mine, tuple) and mine[1] != port
    try:
        statement = await connection.prepare("select $1::int")
        for n in range(TRIES):
            await statement.fetchval(n)
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError) as error:
        return [
            fail(
                "pooler",
                f"statements do not stay prepared: {error}",
                "give the pooler max_prepared_statements (PgBouncer 1.21 and newer), or sessions",
            )
        ]
    if len(pids) > 1:
        return [warn("pooler", "one stands in between that lends a session for one transaction at a time", _POOLER)]
    if between:
        return [
            ok(
                "pooler",
                "something stands in between (a proxy, a pooler or address translation), and the session stays ours",
            )
        ]
    return [ok("pooler", "none in between")]


async def examine_listen(url: str, name: str) -> list[Finding]:
    """Send a NOTIFY to ourselves and wait for it, on a connection as the workers' listeners have it."""
    heard = asyncio.Event()
    token = f"echo {secrets.token_hex(8)}"

    def hear(_connection: Any, _pid: int, _channel: str, word: Any) -> None:
        if word == token:
            heard.set()

    connection = await asyncpg.connect(url, timeout=ANSWER, server_settings={"application_name": "howdah doctor"})
    try:
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(ANSWER):
            await connection.add_listener("howdah_control", hear)
            await connection.execute("select pg_notify('howdah_control', $1)", token)
            await heard.wait()
    except _LACKING as error:
        return [
            warn(
                "listen",
                f"{name} leads to a server without LISTEN and NOTIFY ({error}): workers poll",
                "nothing is lost; jobs start up to 0.2 s later",
            )
        ]
    except TimeoutError:
        return [
            fail(
                "listen", f"a NOTIFY to ourselves over {name} was not heard within {ANSWER:g} s: workers poll", _POOLER
            )
        ]
    finally:
        with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.close(timeout=1)
    return [
        ok(
            "listen",
            f"a NOTIFY over {name} was heard after {(asyncio.get_running_loop().time() - began) * 1000:.0f} ms",
        )
    ]


async def examine_port(host: str, port: int) -> list[Finding]:
    """Ask the worker of this machine, if one answers, how it is itself."""
    place = f"{host}:{port}"
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER)) as session:
            async with session.get(f"http://{place}/readyz") as answer:
                ready, word = answer.status == 200, await answer.json(content_type=None)
            async with session.get(f"http://{place}/metrics") as answer:
                lines = (await answer.text()).splitlines()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return [
            unseen(
                "port",
                f"no worker answers at {place}",
                "set HOWDAH_HTTP_HOST and HOWDAH_HTTP_PORT to one's, to have it asked",
            )
        ]
    findings = []
    if "howdah_listener_up 0.0" in lines:
        findings.append(
            warn(
                "port",
                f"the worker at {place} hears no wakes: it polls",
                f"if the line 'listen' is well here, its way is another; {_POOLER}",
            )
        )
    if not ready:
        reasons = ", ".join(word.get("reasons", ())) if isinstance(word, dict) else ""
        findings.append(warn("port", f"the worker at {place} is not ready: {reasons}", "see its log"))
    return findings or [ok("port", f"the worker at {place} is ready and hears wakes")]
