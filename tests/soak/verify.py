"""The proof: every job that was committed has exactly one end, effects are there once, and no end was written under an old lease."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from pathlib import Path

    from soak.stage import Stage

#: Seconds between windows, and the age at which a batch is looked at: most of what it holds has ended by then.
WINDOW, AGE = 30.0, 60.0

# The history is read by its index alone, a range at a time: no plan may read all of it for every window.
_WINDOW = """
with old as materialized (
  select id, jobs, ids from soak.batches where not checked and at < now() - make_interval(secs => $1) order by id limit 5000),
found as materialized (
  select o.id, o.jobs, count(h.id) as ends, count(distinct h.id) as jobs_ended
  from old o cross join lateral unnest(o.ids) r(ids)
  left join lateral (select h.id from howdah.job_history h where h.id >= lower(r.ids) and h.id < upper(r.ids)) h on true
  group by o.id, o.jobs),
marked as (
  update soak.batches b set checked = true from found f where b.id = f.id and f.ends = f.jobs and f.jobs_ended = f.jobs)
select coalesce(sum(jobs_ended), 0)::bigint as ended, coalesce(sum(greatest(ends - jobs_ended, 0)), 0)::bigint as doubled,
       coalesce(sum(jobs - jobs_ended), 0)::bigint as open from found"""

#: Each gives rows that ought not to be there: what it is, how many, and some of the ids.
_PROOFS = {
    "jobs without an end": """
        select count(*), (array_agg(id))[:5] from (
          select i.id from soak.batches b cross join lateral unnest(b.ids) r(ids) cross join lateral generate_series(lower(r.ids), upper(r.ids) - 1) i(id)
          where not b.checked
          except select h.id from howdah.job_history h) missing""",
    "jobs that live on": "select count(*), (array_agg(id))[:5] from howdah.jobs",
    "jobs with two ends": """
        select count(*), (array_agg(id))[:5] from (select id from howdah.job_history group by id having count(*) > 1) doubled""",
    "ends of jobs that nobody enqueued": """
        select ends - jobs, null::bigint[] from (select count(*) as ends from howdah.job_history) h, (select sum(jobs) as jobs from soak.batches) b
        where ends <> jobs""",
    "effects that are there twice": """
        select count(*), (array_agg(job_id))[:5] from (select job_id from soak.effects group by job_id having count(*) > 1) doubled""",
    "completions without their effect": """
        select count(*), (array_agg(id))[:5] from (
          select id from howdah.job_history where kind = 'soak_effect' and state = 'completed' except select job_id from soak.effects) missing""",
    "effects without a completion": """
        select count(*), (array_agg(job_id))[:5] from (
          select job_id from soak.effects except select id from howdah.job_history where kind = 'soak_effect' and state = 'completed') wrong""",
    "ends under a lease that was not the last (of the sample)": """
        select count(*), (array_agg(id))[:5] from howdah.job_history h
        join lateral (select lease from soak.claims c where c.job_id = h.id order by seq desc limit 1) last on true
        where h.id % 100 = 0 and h.lease is not null and h.lease <> last.lease""",
    "completions without a claim (of the sample)": """
        select count(*), (array_agg(id))[:5] from howdah.job_history h
        where h.id % 100 = 0 and h.state = 'completed' and not exists (select from soak.claims c where c.job_id = h.id and c.lease = h.lease)""",
    "starts without a committed claim (of the sample)": """
        select count(*), (array_agg(job_id))[:5] from (select job_id, lease from soak.starts except select job_id, lease from soak.claims) wrong""",
    "leases that started twice (of the sample)": """
        select count(*), (array_agg(job_id))[:5] from (select job_id from soak.starts group by job_id, lease having count(*) > 1) wrong""",
    "completions that never started (of the sample)": """
        select count(*), (array_agg(id))[:5] from howdah.job_history h
        where h.id % 100 = 0 and h.state = 'completed' and not exists (select from soak.starts s where s.job_id = h.id and s.lease = h.lease)""",
    "jobs that are not completed, and were not put aside as what kills workers": """
        select count(*), (array_agg(id))[:5] from howdah.job_history
        where state <> 'completed' and errors -> -1 ->> 'type' is distinct from 'WorkerDied'""",
}


class Proof:
    """Looks at what has ended in windows while the load runs, and at everything at the end."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.windows = 0
        self.doubled = 0
        self.broken: list[str] = []

    async def run(self) -> None:
        """Look at a window now and then, until cancelled."""
        while True:
            await asyncio.sleep(WINDOW)
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection = await self._stage.connect(command_timeout=60)
                try:
                    await self._window(connection, AGE)
                finally:
                    connection.terminate()

    async def finish(self, folder: Path) -> dict[str, int]:
        """Prove all of it; gives how jobs ended, by state. What is broken stands in `broken`."""
        connection = await self._stage.connect()
        try:
            await connection.execute("set work_mem = '256MB'")
            while await self._window(connection, 0.0):
                pass
            await self._read_starts(connection, folder)
            await connection.execute("analyze soak.claims, soak.starts, soak.effects, howdah.job_history")
            for what, query in _PROOFS.items():
                row = await connection.fetchrow(query)
                if row is not None and row[0]:
                    self.broken.append(f"{row[0]} {what}, such as {row[1]}")
            return dict(await connection.fetch("select state, count(*) from howdah.job_history group by 1"))
        finally:
            connection.terminate()

    async def _window(self, connection: asyncpg.Connection, age: float) -> bool:
        """Look at the batches that are so old; tells whether any were done with."""
        async with connection.transaction():
            await connection.execute("set local enable_seqscan = off; set local enable_material = off")
            before = await connection.fetchval("select count(*) from soak.batches where not checked")
            row = await connection.fetchrow(_WINDOW, age)
            after = await connection.fetchval("select count(*) from soak.batches where not checked")
        self.windows += 1
        self.doubled += row["doubled"]
        return bool(after < before)

    async def _read_starts(self, connection: asyncpg.Connection, folder: Path) -> None:
        """Put what the workers' files say into a table; a line that a kill has cut short is no start."""
        await connection.execute("create table soak.starts (job_id bigint not null, lease bigint not null)")
        starts = [
            (int(words[0]), int(words[1]))
            for file in sorted(folder.glob("*.starts"))
            for line in file.read_text(encoding="ascii").split("\n")[:-1]
            if len(words := line.split()) == 2
        ]
        await connection.copy_records_to_table("starts", schema_name="soak", records=starts)
