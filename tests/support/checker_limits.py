"""What must hold of limits and FIFO keys at every instant: rules of the checker."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import asyncpg
    from support.checker import Story

#: Every hold that was taken and freed, with the limit that held when it was taken, and what it was for.
AUDIT = """
create table public.audit_holds (
  seq bigint generated always as identity primary key, at timestamptz not null default clock_timestamp(),
  step int not null, key text not null, job_id bigint not null, most int);
create function public.write_hold() returns trigger language plpgsql security definer as $$
begin
  if tg_op = 'INSERT' then
    insert into public.audit_holds (step, key, job_id, most)
    values (1, new.key, new.job_id, case when new.stays then 1 else (howdah.limit_for(new.key)).concurrency end);
  else
    insert into public.audit_holds (step, key, job_id) values (-1, old.key, old.job_id);
  end if;
  return null;
end $$;
create trigger audit after insert or delete on howdah.holds for each row execute function public.write_hold();
"""


async def read_holds(connection: asyncpg.Connection) -> list[Any]:
    """Give the audit of holds, in the order in which they were written."""
    return list(await connection.fetch("select * from public.audit_holds order by seq"))


def broken_limits(holds: Sequence[Any], stories: Mapping[int, Story]) -> Iterator[str]:
    """Name every key that was held by too many, every job that ran without its keys, and every line out of order."""
    yield from _too_many(holds, stories)
    taken = {(row["key"], row["job_id"]) for row in holds if row["step"] > 0}
    for job, story in stories.items():
        for key in _keys(story.claims[0]["row"]) if story.claims else []:
            if (key, job) not in taken:
                yield f"job {job} was claimed and never held {key}"
    yield from _out_of_order(holds, stories)


def _too_many(holds: Sequence[Any], stories: Mapping[int, Story]) -> Iterator[str]:
    """A hold is over at the earliest when it was freed, before that was committed: who saw it freed came later."""
    held: dict[str, set[int]] = defaultdict(set)
    for row in holds:
        jobs = held[row["key"]]
        if row["step"] < 0:
            jobs.discard(row["job_id"])
            continue
        jobs.add(row["job_id"])
        if row["most"] is not None and len(jobs) > row["most"]:
            yield f"key {row['key']} was held by {sorted(jobs)} at {row['at']}, limit {row['most']}"
    for key, jobs in held.items():
        for job in jobs:
            if job not in stories or stories[job].history:
                yield f"job {job} has ended and still holds {key}"


def _out_of_order(holds: Sequence[Any], stories: Mapping[int, Story]) -> Iterator[str]:
    lines: dict[str, list[tuple[int, Any]]] = defaultdict(list)
    for row in holds:
        if row["step"] > 0 and row["key"].startswith("fifo:"):
            lines[row["key"]].append((row["job_id"], row["at"]))
    for key, line in lines.items():
        for place, (job, at) in enumerate(line):
            for later, _ in line[place + 1 :]:
                if later < job and _ready_before(stories[later], at):
                    yield f"job {job} of {key} was begun before job {later}, which was ready"


def _keys(row: Mapping[str, Any]) -> list[str]:
    return [*(row["limits"] or []), *([f"fifo:{row['fifo_key']}"] if row["fifo_key"] else [])]


def _ready_before(story: Story, at: Any) -> bool:
    """Tell whether a job had been ready for a while at a moment: its transaction may have committed later than it was written."""
    entries = [entry for entry in story.audit if entry["event"] in {"created", "moved", "given back"}]
    ready = [entry for entry in entries if entry["at"] < at]
    return bool(ready) and ready[-1]["row"]["due_at"] is None and (at - ready[-1]["at"]).total_seconds() > 1
