"""The checker: what must hold of every job, whatever happened to its workers, read from logs that nobody can take back.

Handlers write a journal through connections of their own, each word committed at once. Triggers write an audit of the
engine's tables, in the engine's own transactions: every claim that was committed is in it, and nothing that was not.
`check` reads both, and the tables, and names every job of which something is not as promised.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from support import checker_limits
from support.checker_waiting import AUDIT, broken_waits

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg
    from support.figures import Figures

_SCHEMA = """
create table public.journal (
  seq bigint generated always as identity primary key, job_id bigint not null, lease bigint not null, attempt int not null, worker text not null,
  event text not null check (event in ('start', 'end')), at timestamptz not null default clock_timestamp());
create table public.effect (job_id bigint not null, attempt int not null);

-- One row for every change of a live job's standing; `row` is the whole row as it was after.
create table public.audit (
  seq bigint generated always as identity primary key, at timestamptz not null default clock_timestamp(), event text not null,
  job_id bigint not null, row jsonb not null);

create function public.write_audit() returns trigger language plpgsql security definer as $$
begin
  if tg_table_name = 'jobs' then
    if tg_op = 'UPDATE' and new.lease is not distinct from old.lease and new.due_at is not distinct from old.due_at
        and new.started_at is not distinct from old.started_at then
      return null;
    end if;
    insert into public.audit (event, job_id, row)
    values (case tg_op when 'INSERT' then 'created' when 'DELETE' then 'gone'
              else case when new.lease is distinct from old.lease and new.lease is not null then 'claimed'
                        when new.lease is distinct from old.lease then 'given back' else 'moved' end end,
            coalesce(new.id, old.id), to_jsonb(coalesce(new, old)) - 'payload' - 'headers');
  else
    insert into public.audit (event, job_id, row)
    values (case tg_op when 'INSERT' then 'ended' else 'history changed' end, coalesce(new.id, old.id), to_jsonb(coalesce(new, old)) - 'payload' - 'headers');
  end if;
  return null;
end $$;
create trigger audit after insert or update or delete on howdah.jobs for each row execute function public.write_audit();
create trigger audit after insert or update or delete on howdah.job_history for each row execute function public.write_audit();
"""

#: For handlers modules: `await journal(job, "start")`, from any thread or process, committed before it returns.
JOURNAL = """
async def journal(job, event):
    connection = await asyncpg.connect(os.environ["HOWDAH_DATABASE_URL"])
    try:
        await connection.execute(
            "insert into public.journal (job_id, lease, attempt, worker, event) values ($1, $2, $3, $4, $5)",
            job.id, job.lease, job.attempt, str(os.getpid()), event)
    finally:
        await connection.close()

_writer = None
_turn = asyncio.Lock()

async def quick_journal(job, event):
    # The same over one connection a worker, for jobs by the hundred.
    global _writer
    async with _turn:
        if _writer is None or _writer.is_closed():
            _writer = await asyncpg.connect(os.environ["HOWDAH_DATABASE_URL"])
        await _writer.execute(
            "insert into public.journal (job_id, lease, attempt, worker, event) values ($1, $2, $3, $4, $5)",
            job.id, job.lease, job.attempt, str(os.getpid()), event)

@handler("innocent")
async def innocent(job: Job) -> None:
    await quick_journal(job, "start")
    await asyncio.sleep(job.payload.get("seconds", 0))
    await quick_journal(job, "end")

@handler("effect", transaction=True)
async def effect(job: Job, connection: asyncpg.Connection) -> None:
    await quick_journal(job, "start")
    await connection.execute("insert into public.effect values ($1, $2)", job.id, job.attempt)
    await asyncio.sleep(job.payload.get("seconds", 0))
    await quick_journal(job, "end")
"""


class Word(NamedTuple):
    """One line of the journal."""

    seq: int
    job_id: int
    lease: int
    attempt: int
    worker: str
    event: str
    at: Any


@dataclass(slots=True)
class Story:
    """Everything that is known of one job."""

    audit: list[Any]
    words: list[Word]
    history: list[Any]
    live: Any

    @property
    def claims(self) -> list[Any]:
        return [entry for entry in self.audit if entry["event"] == "claimed"]

    @property
    def starts(self) -> list[Word]:
        return [word for word in self.words if word.event == "start"]

    @property
    def begun(self) -> set[int]:
        """The leases under which it was started: its handler says so, or its start was written, and its worker died before the handler's first word."""
        moved = [entry["row"] for entry in self.audit if entry["event"] == "moved"]
        written = {row["lease"] for row in moved if row.get("started_at") is not None}
        return {word.lease for word in self.starts} | written - {None}


class Checker:
    """Watches one database from before its first job on."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def install(self) -> Checker:
        """Make the journal and the audit; before the first job is enqueued."""
        assert not await self._connection.fetchval("select exists (select from howdah.job_status)"), (
            "too late: jobs exist"
        )
        await self._connection.execute(_SCHEMA + AUDIT + checker_limits.AUDIT)
        return self

    async def starts(self, *jobs: int) -> list[Word]:
        """Give the starts of jobs, in order."""
        rows = await self._connection.fetch(
            "select * from public.journal where event = 'start' and job_id = any ($1) order by seq", jobs
        )
        return [Word(*row) for row in rows]

    async def history_of(self, job: int) -> asyncpg.Record:
        """Give the one history row of a job."""
        [row] = await self._connection.fetch("select * from howdah.job_history where id = $1", job)
        return row

    async def check(self, *, drained: bool = True, steady: bool = True, figures: Figures | None = None) -> None:
        """Raise AssertionError that names every job of which a promise is broken, and count into `figures`.

        `drained`: all jobs must have ended. `steady`: the server's clock was never set, so its times say what came first.
        """
        stories = await self._read()
        effects = Counter(
            dict(await self._connection.fetch("select job_id, count(*) from public.effect group by job_id"))
        )
        if figures is not None:
            figures.jobs += len(stories)
            figures.lost += sum(len(story.history) != 1 for story in stories.values()) if drained else 0
            figures.doubled += sum(count > 1 for count in effects.values())
        broken = [
            f"job {job_id}: {problem}"
            for job_id, story in sorted(stories.items())
            for problem in _problems(story, drained=drained, steady=steady, effects=effects[job_id])
        ]
        broken += _broken_keys(stories)
        broken += broken_waits(stories)
        broken += checker_limits.broken_limits(await checker_limits.read_holds(self._connection), stories)
        assert not broken, f"{len(broken)} broken promises:\n" + "\n".join(broken[:40])

    async def _read(self) -> dict[int, Story]:
        stories: dict[int, Story] = defaultdict(lambda: Story([], [], [], None))
        # One snapshot: a job that moves while we read would be seen twice or never.
        async with self._connection.transaction(isolation="repeatable_read"):
            for row in await self._connection.fetch("select * from public.audit order by seq"):
                stories[row["job_id"]].audit.append(row)
            for row in await self._connection.fetch("select * from public.journal order by seq"):
                stories[row["job_id"]].words.append(Word(*row))
            for row in await self._connection.fetch("select * from howdah.job_history"):
                stories[row["id"]].history.append(row)
            for row in await self._connection.fetch("select * from howdah.jobs"):
                stories[row["id"]].live = row
        return stories


def _problems(story: Story, *, drained: bool, steady: bool, effects: int) -> Iterator[str]:
    yield from _one_end(story, drained=drained)
    yield from _fences(story, steady=steady)
    yield from _attempts(story)
    if steady:
        yield from _times(story)
    if drained and story.history:
        yield from _end(story, story.history[0], effects)


def _one_end(story: Story, *, drained: bool) -> Iterator[str]:
    """Every committed enqueue has exactly one terminal record, which never changes."""
    if not any(entry["event"] == "created" for entry in story.audit):
        yield "it was never enqueued, yet it is known"
    if drained and not story.history:
        yield f"it has no end: {'it is ' + story.live['state'] if story.live else 'it is nowhere'}"
    if len(story.history) > 1:
        yield f"it has {len(story.history)} ends: {[row['state'] for row in story.history]}"
    if story.history and story.live:
        yield f"it has ended ({story.history[0]['state']}) and lives on ({story.live['state']})"
    if changed := [entry for entry in story.audit if entry["event"] == "history changed"]:
        yield f"its history was changed {len(changed)} times"
    ends = [entry["seq"] for entry in story.audit if entry["event"] == "ended"]
    if ends and any(entry["event"] == "claimed" and entry["seq"] > ends[0] for entry in story.audit):
        yield "it was claimed after its end"


def _fences(story: Story, *, steady: bool) -> Iterator[str]:
    """No start without a committed claim, no two claims under one lease, no ack under an old lease."""
    claimed = {entry["row"]["lease"]: entry for entry in story.claims}
    if len(claimed) != len(story.claims):
        yield "two claims share a lease"
    for word in story.starts:
        claim = claimed.get(word.lease)
        if claim is None:
            yield f"attempt {word.attempt} started under lease {word.lease} without a committed claim"
        elif steady and claim["at"] > word.at:
            yield f"attempt {word.attempt} started at {word.at}, before its claim at {claim['at']}"
    for row in story.history:
        last = story.claims[-1]["row"]["lease"] if story.claims else None
        # No lease: its worker died, or it was cancelled while nobody held it.
        if row["lease"] is not None and row["lease"] != last:
            yield f"its end was written under lease {row['lease']}, but the last claim was {last}"
        if row["state"] == "completed" and row["lease"] is None:
            yield "it was completed by nobody"


def _attempts(story: Story) -> Iterator[str]:
    """Attempts stay within the maximum, and every crash has a start that came to no end."""
    for row in [*story.history, *([story.live] if story.live else [])]:
        if row["attempt"] > row["max_attempts"]:
            yield f"{row['attempt']} attempts of at most {row['max_attempts']}"
        cut_short = story.begun - {row["lease"]}
        if row["crashes"] > len(cut_short):
            yield f"{row['crashes']} crashes, but only {len(cut_short)} starts that came to no end"
    for word in story.starts:
        if any(row["max_attempts"] < word.attempt for row in story.history):
            yield f"attempt {word.attempt} started"
    leases = [word.lease for word in story.starts]
    if len(set(leases)) != len(leases):
        yield "it was started twice under one lease"


def _times(story: Story) -> Iterator[str]:
    """Nothing becomes ready, and nothing starts, before its time, by the database's clock."""
    due: str | None = None
    for entry in story.audit:
        if entry["event"] not in {"created", "given back", "moved"}:
            continue
        now_due = entry["row"]["due_at"]
        if due not in {None, "infinity"} and now_due is None and entry["at"] < datetime.fromisoformat(str(due)):
            yield f"it was due at {due} and made ready at {entry['at'].isoformat()}"
        due = now_due
    for claim in story.claims:
        if claim["row"]["due_at"] is not None:
            yield f"it was claimed while it was due at {claim['row']['due_at']}"


def _end(story: Story, row: Any, effects: int) -> Iterator[str]:
    """A job that never started is never dead, and a transaction's effects are there exactly once."""
    types = [error.get("type") for error in row["errors"] or []]
    if row["state"] == "dead" and not story.begun and types[-1:] != ["PayloadError"]:
        yield f"it is dead ({row['errors']}) and never started"
    if row["kind"] == "effect" and effects != (1 if row["state"] == "completed" else 0):
        yield f"it is {row['state']} and its effect is there {effects} times"
    if row["state"] == "completed" and story.words and story.history[0]["lease"] not in {w.lease for w in story.starts}:
        yield "it was completed under a lease under which it never started"


def _broken_keys(stories: dict[int, Story]) -> Iterator[str]:
    """No two jobs of one unique key are live at the same time."""
    lives: dict[str, list[tuple[Any, Any, int]]] = defaultdict(list)
    for job_id, story in stories.items():
        created = next((entry for entry in story.audit if entry["event"] == "created"), None)
        if created is None or created["row"]["unique_key"] is None:
            continue
        gone = next((entry["seq"] for entry in story.audit if entry["event"] == "gone"), float("inf"))
        lives[created["row"]["unique_key"]].append((created["seq"], gone, job_id))
    for key, spans in lives.items():
        spans.sort()
        for (_, gone, first), (created, _, second) in pairwise(spans):
            if created < gone:
                yield f"jobs {first} and {second} were live at once, both with the unique_key {key!r}"
