"""What must hold of jobs that wait for jobs, and of batches: rules of the checker."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from support.checker import Story

#: What the checker's audit needs besides, to know who was to wait for what.
AUDIT = """
create function public.write_waiting() returns trigger language plpgsql security definer as $$
begin
  insert into public.audit (event, job_id, row)
  values (case tg_table_name when 'batches' then 'opened' else 'depends' end,
          (to_jsonb(new) ->> case tg_table_name when 'batches' then 'id' else 'job_id' end)::bigint, to_jsonb(new));
  return null;
end $$;
create trigger audit after insert on howdah.dependencies for each row execute function public.write_waiting();
create trigger audit after insert on howdah.batches for each row execute function public.write_waiting();
"""


def broken_waits(stories: Mapping[int, Story]) -> Iterator[str]:
    """Name every job that was let go too early, twice or against its policy, and every batch that was miscounted."""
    members: dict[int, list[int]] = defaultdict(list)
    for job_id, story in stories.items():
        if (batch := _created(story).get("batch")) is not None:
            members[batch].append(job_id)
    for job_id, story in sorted(stories.items()):
        for problem in (*_dependencies(story, stories), *_batch(job_id, story, members[job_id], stories)):
            yield f"job {job_id}: {problem}"


def _created(story: Story) -> dict[str, Any]:
    return next((entry["row"] for entry in story.audit if entry["event"] == "created"), {})


def _let_go(story: Story) -> list[int]:
    """The places in the audit at which a job stopped waiting and lived on."""
    found, due = [], None
    for entry in story.audit:
        if entry["event"] in {"created", "moved", "given back"}:
            if due == "infinity" and entry["row"]["due_at"] != "infinity":
                found.append(entry["seq"])
            due = entry["row"]["due_at"]
    return found


def _end(story: Story) -> tuple[int, str] | None:
    """The place in the audit at which a job ended, and how."""
    return next(((entry["seq"], entry["row"]["state"]) for entry in story.audit if entry["event"] == "ended"), None)


def _dependencies(story: Story, stories: Mapping[int, Story]) -> Iterator[str]:
    waits = [entry["row"] for entry in story.audit if entry["event"] == "depends"]
    if not waits:
        return
    let_go = _let_go(story)
    if len(let_go) > 1:
        yield f"it stopped waiting {len(let_go)} times"
    lost = False
    for wait in waits:
        other = wait["depends_on"]
        end = _end(stories[other]) if other in stories else None
        failed = wait["required"] and end is not None and end[1] != "completed"
        lost = lost or failed
        if not let_go:
            continue
        if end is None or end[0] > let_go[0]:
            yield f"it stopped waiting before job {other} had ended"
        elif failed:
            yield f"it stopped waiting, but job {other}, which it needs, was {end[1]}"
        first = min((word.at for word in story.starts), default=None)
        if end is not None and first is not None and first < stories[other].history[0]["finished_at"]:
            yield f"it started at {first}, before the end of job {other}"
    if not lost and any(row["cancelled_by"] == "howdah" for row in story.history):
        yield "it was cancelled for a dependency, and all that it needs have completed"


def _batch(batch: int, story: Story, members: list[int], stories: Mapping[int, Story]) -> Iterator[str]:
    if not any(entry["event"] == "opened" for entry in story.audit):
        return
    let_go = _let_go(story)
    if len(let_go) > 1:
        yield f"batch {batch} was over {len(let_go)} times"
    if not let_go:
        return
    counts = Counter({"completed": 0, "dead": 0, "cancelled": 0})
    for member in members:
        end = _end(stories[member])
        if end is None or end[0] > let_go[0]:
            yield f"batch {batch} was over before the end of job {member}"
        else:
            counts[end[1]] += 1
    for row in [*story.history, *([story.live] if story.live else [])]:
        told = (row["headers"] or {}).get("batch")
        if told != dict(counts):
            yield f"batch {batch} tells of {told}, but it was {dict(counts)}"
    first = min((word.at for word in story.starts), default=None)
    for member in members if first is not None else []:
        if any(first < row["finished_at"] for row in stories[member].history):
            yield f"it started at {first}, before the end of job {member}"
