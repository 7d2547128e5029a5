"""The doctor on the schema: its version, its indexes, its days of history, its roles."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from howdah.doctor.finding import fail, ok, unseen, warn
from howdah.queries import read_query, sql_folder
from howdah.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg

    from howdah.doctor.finding import Finding

#: What a claim writes: an index that names one of these makes every claim write every index.
CLAIMED = {"lease", "leased_by", "claimed_at", "started_at", "attempt", "state", "progress", "progressed_at"}
#: With fewer days of history in hand somebody should look.
FEW_DAYS = 3


async def examine_version(connection: asyncpg.Connection) -> list[Finding]:
    """Compare the schema with this release."""
    row = await connection.fetchrow(read_query("schema_check"))
    if row is None:
        return [
            unseen(
                "schema", "this login sees no row of howdah.settings", "ask as a member of one of the engine's roles"
            )
        ]
    version, oldest = row
    needed = len(list((sql_folder() / "migrations").glob("*.sql")))
    if version is None or version < needed:
        return [
            fail(
                "schema",
                f"version {version or 0}, and this release (howdah {__version__}) needs {needed}",
                "howdah migrate",
            )
        ]
    newer = f"; this release knows {needed}" if version > needed else ""
    if _release(__version__) < _release(oldest):
        return [
            fail("schema", f"it asks for howdah {oldest} or newer, this is {__version__}", f"install howdah {oldest}")
        ]
    return [ok("schema", f"version {version}{newer}, for howdah {oldest} and newer")]


async def examine_indexes(connection: asyncpg.Connection) -> list[Finding]:
    """Look for indexes that are missing, broken, or in the way of claims."""
    found = {row["name"]: row for row in await connection.fetch(read_query("indexes", "doctor"))}
    expected = dict(_expected_indexes())
    findings = [
        fail("indexes", f"{name} on {table} is missing", f"create it as {sql_folder() / 'schema.sql'} has it")
        for name, table in expected.items()
        if name not in found
    ]
    findings += [
        fail("indexes", f"{name} is not valid, so nothing uses it", f"reindex index concurrently howdah.{name}")
        for name, row in found.items()
        if not row["valid"]
    ]
    findings += [
        warn(
            "indexes",
            f"{name} names {', '.join(sorted(CLAIMED & set(row['columns'])))}: no claim is a heap-only update any more",
            f"drop index concurrently howdah.{name}",
        )
        for name, row in found.items()
        if row["table"] == "jobs" and name not in expected and CLAIMED & set(row["columns"])
    ]
    return findings or [ok("indexes", f"{len(expected)} of {len(expected)} there and valid")]


async def examine_history(connection: asyncpg.Connection) -> list[Finding]:
    """Count the days of history that are ready: without today's no job can end."""
    days = [row["day"] for row in await connection.fetch(read_query("partitions", "doctor"))]
    coming = [day for day in days if day >= 0]
    ahead = next((place for place, day in enumerate(coming) if place != day), len(coming))
    since = f", back to {-days[0]} days ago" if days and days[0] < 0 else ""
    if not ahead:
        return [fail("history", "today has no partition: no job can end until a worker has made it", _MAKE_PARTITIONS)]
    if ahead < FEW_DAYS:
        return [warn("history", f"partitions for only {ahead} days from today", _MAKE_PARTITIONS)]
    return [ok("history", f"partitions for {ahead} days from today{since}")]


async def examine_roles(connection: asyncpg.Connection) -> list[Finding]:
    """Say as whom we look, and whether the engine's roles are there."""
    row = await connection.fetchrow(read_query("roles", "doctor"))
    if row is None:
        return []
    login = row["login"]
    if not row["roles"]:
        return [unseen("roles", f"there are none of the engine's; this is {login}", _NO_ROLES)]
    if row["superuser"] or row["owner"]:
        above = "a superuser" if row["superuser"] else "the owner of the tables"
        return [
            ok(
                "roles",
                f"{', '.join(row['roles'])}; {login} is {above}: nothing holds it back, so no worker should be it",
            )
        ]
    if not row["memberships"]:
        return [
            warn(
                "roles", f"{login} is a member of none of {', '.join(row['roles'])}", f"grant howdah_worker to {login}"
            )
        ]
    return [ok("roles", f"{login} is a member of {', '.join(row['memberships'])}")]


_MAKE_PARTITIONS = "select howdah.make_partitions()   -- a living worker does it every hour; its log says what kept it"
_NO_ROLES = (
    "howdah migrate, by a login that may create roles, makes them; after migrate --no-roles this is as it should be"
)


def _expected_indexes() -> Iterator[tuple[str, str]]:
    """Read off schema.sql which indexes there are to be."""
    text = (sql_folder() / "schema.sql").read_text(encoding="utf-8")
    for match in re.finditer(r"^create (?:unique )?index (\w+) on howdah\.(\w+)", text, re.MULTILINE):
        yield match[1], match[2]


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
