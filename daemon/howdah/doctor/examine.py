"""Every examination, one after the other; one that cannot be made is said so and keeps no other from being made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg

from howdah.database import connected
from howdah.doctor import schedules, schema, server, wire, work
from howdah.doctor.finding import Finding, fail, unseen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from howdah.config import Config

    Examination = Callable[[asyncpg.Connection], Awaitable[list[Finding]]]

#: Longer than the server gives a statement, in seconds: who has not answered by then never will.
PATIENCE = 35.0
#: In the order of cause before effect.
EXAMINATIONS: dict[str, Examination] = {
    "server": server.examine_server,
    "schema": schema.examine_version,
    "lacks": server.examine_lacks,
    "roles": schema.examine_roles,
    "indexes": schema.examine_indexes,
    "history": schema.examine_history,
    "clock": server.examine_clock,
    "pooler": wire.examine_pooler,
    "snapshot": server.examine_snapshots,
    "tables": server.examine_tables,
    "workers": work.examine_workers,
    "paused": work.examine_paused,
    "queues": work.examine_ready,
    "limits": work.examine_limits,
    "orphans": work.examine_orphans,
    "schedules": schedules.examine_schedules,
    "stuck": work.examine_stuck,
    "failing": work.examine_failing,
    "dead": work.examine_dead,
}


async def examine(config: Config, url: str) -> AsyncIterator[Finding]:
    """Examine everything; gives the lines as they are found."""
    try:
        async with connected(url, name="doctor", call_timeout=PATIENCE) as connection:
            # Other people's locks are no reason to hang.
            await connection.execute("set statement_timeout = '30s'; set lock_timeout = '2s'")
            for topic, look in EXAMINATIONS.items():
                findings = await _make(topic, look, connection)
                for finding in findings:
                    yield finding
                if topic == "schema" and any(finding.level == "fail" for finding in findings):
                    return
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        yield fail(
            "database",
            f"it does not answer: {str(error) or type(error).__name__}",
            "check HOWDAH_DATABASE_URL, and whether the server runs",
        )
        return
    name = "HOWDAH_LISTEN_DATABASE_URL" if config.listen_database_url else "HOWDAH_DATABASE_URL"
    try:
        for finding in await wire.examine_listen(config.listen_database_url or url, name):
            yield finding
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        yield fail("listen", f"{name} does not answer: {str(error) or type(error).__name__}", f"check {name}")
    for finding in await wire.examine_port(config.http_host, config.http_port):
        yield finding


async def _make(topic: str, look: Examination, connection: asyncpg.Connection) -> list[Finding]:
    try:
        return await look(connection)
    except asyncpg.InsufficientPrivilegeError as error:
        return [unseen(topic, f"this login may not look: {error}", "ask as a member of howdah_worker or howdah_admin")]
    except (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedTableError) as error:
        return [fail(topic, f"the database has no howdah schema, or not all of it: {error}", "howdah migrate")]
    except (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError) as error:
        return [unseen(topic, f"it took too long: {error}")]
