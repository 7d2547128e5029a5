"""The doctor on the server: who keeps vacuum from its work, bloat, autovacuum, the clock, the queue of notifications."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from howdah.doctor.finding import fail, ok, span, unseen, warn
from howdah.queries import read_query
from howdah.standing import WITHOUT

if TYPE_CHECKING:
    import asyncpg

    from howdah.doctor.finding import Finding

#: A snapshot that is older than so many seconds, or so many transactions, is worth a word, and then one that hurts.
HELD, HELD_LONG = 60.0, 3600.0
OLD, VERY_OLD = 100_000, 10_000_000
#: So many dead rows, and more of them than living ones, are bloat.
BLOAT = 100_000
#: Clocks that differ by more than so many seconds make logs hard to read.
CLOCK = 2.0
OLDEST_SERVER = 140_000


async def examine_server(connection: asyncpg.Connection) -> list[Finding]:
    """See what server this is, and whether it can be written to."""
    row = await connection.fetchrow(read_query("server", "doctor"))
    if row is None:
        return []
    findings = []
    if row["standby"]:
        findings.append(
            fail(
                "server",
                "the address leads to a standby, which takes no writes",
                "set HOWDAH_DATABASE_URL to the primary",
            )
        )
    if row["number"] < OLDEST_SERVER:
        findings.append(fail("server", f"PostgreSQL {row['version']} is older than 14", "upgrade it"))
    if not row["autovacuum"] or not row["track_counts"]:
        findings.append(
            fail(
                "autovacuum",
                "it is switched off on this server",
                "alter system set autovacuum = on, track_counts = on; then select pg_reload_conf()",
            )
        )
    if row["notify_queue"] > 0.1:
        level = fail if row["notify_queue"] > 0.5 else warn
        findings.append(
            level(
                "notifications",
                f"their queue is {row['notify_queue']:.0%} full; when it is full, commits that notify fail",
                "end the session that listens in an open transaction: pg_stat_activity, state 'idle in transaction'",
            )
        )
    return findings or [ok("server", f"PostgreSQL {str(row['version']).split()[0]}, takes writes")]


async def examine_lacks(connection: asyncpg.Connection) -> list[Finding]:
    """See what of PostgreSQL this server does not have, or this login may not use."""
    findings = []
    for row in await connection.fetch(read_query("lacks")):
        name, instead = WITHOUT[row["missing"]]
        says = f"the server has no {name} for this login"
        if row["needed"]:
            do = f"stop all workers, then howdah migrate, or update howdah.settings set {row['missing']} = false"
            findings.append(fail("lacks", f"{says}, and the schema relies on them: no worker starts", do))
        else:
            findings.append(
                warn(
                    "lacks",
                    f"{says}: {instead}",
                    "nothing is lost; see docs/operating.md, Servers that are nearly PostgreSQL",
                )
            )
    return findings or [ok("lacks", "nothing: advisory locks and notifications are there")]


async def examine_snapshots(connection: asyncpg.Connection) -> list[Finding]:
    """Name whoever keeps vacuum from its work, with the statement that frees it."""
    findings = []
    for row in await connection.fetch(read_query("snapshots", "doctor")):
        held, age = row["held"], row["age"]
        if (held or 0) < HELD and age < OLD:
            continue
        since = f"for {span(held)}" if held is not None else "for longer than this login may see"
        level = fail if (held or 0) > HELD_LONG or age > VERY_OLD else warn
        doing = f" ({row['doing']})" if row["doing"] else ""
        findings.append(
            level(
                "snapshot",
                f"{row['holder']} {row['name']}{doing} has held one {since}, {age:,} transactions: what was deleted since stays",
                f"{row['remedy']};",
            )
        )
    return findings or [ok("snapshot", "nobody holds an old one: vacuum can do its work")]


async def examine_tables(connection: asyncpg.Connection) -> list[Finding]:
    """Look for bloat, and for settings that make it."""
    findings, jobs = [], ""
    for row in await connection.fetch(read_query("tables", "doctor")):
        name, dead, live = row["name"], row["dead"] or 0, row["live"] or 0
        vacuumed = f"vacuumed {span(row['vacuumed'])} ago" if row["vacuumed"] is not None else "never vacuumed yet"
        size = f"{row['bytes'] / 1e6:,.0f} MB, about {live:,} rows and {dead:,} dead, {vacuumed}"
        if not row["autovacuum"]:
            findings.append(
                fail(
                    "autovacuum",
                    f"it is switched off for {name}",
                    f"alter table howdah.{name} reset (autovacuum_enabled)",
                )
            )
        if dead > BLOAT and dead > live:
            findings.append(
                warn("bloat", f"{name}: {size}", f"vacuum howdah.{name}; if it stays so, see the line about snapshots")
            )
        if name == "jobs":
            jobs = size
            if row["fillfactor"] != 45:
                findings.append(
                    warn(
                        "bloat",
                        f"jobs has fillfactor {row['fillfactor'] or 100}: claims do not fit into their pages",
                        "alter table howdah.jobs set (fillfactor = 45)",
                    )
                )
    return findings or [ok("tables", f"jobs: {jobs}")]


async def examine_clock(connection: asyncpg.Connection) -> list[Finding]:
    """Compare this machine's clock with the database's, which alone decides."""
    best = None
    for _ in range(3):
        asked = time.time()
        theirs = await connection.fetchval("select extract(epoch from clock_timestamp())::float8")
        answered = time.time()
        if best is None or answered - asked < best[1]:
            best = (theirs - (asked + answered) / 2, answered - asked)
    if best is None:
        return [unseen("clock", "no answer")]
    ahead, trip = best
    if abs(ahead) > CLOCK + trip:
        return [
            warn(
                "clock",
                f"the database's is {span(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} this machine's",
                "jobs go by the database's; set both by NTP, or logs tell another story",
            )
        ]
    return [ok("clock", f"the database's and this machine's differ by at most {span(max(abs(ahead), trip, 0.001))}")]
