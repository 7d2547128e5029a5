"""The table at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rich.table import Table

if TYPE_CHECKING:
    import asyncpg

    from demo.crowd import Crowd
    from demo.scene import Scene


@dataclass(frozen=True)
class Numbers:
    """What is worth telling of one demonstration; times in seconds."""

    actions: int
    in_open_transactions: int
    outlived: int
    likes: int
    posts: int
    outcomes: dict[str, int]
    rescued: int
    jobs_per_second: float
    wait_p50: float
    wait_p99: float

    @classmethod
    async def measure(cls, pool: asyncpg.Pool, crowd: Crowd, held: list[int]) -> Self:
        """Read them from the database; the jobs' own from the history."""
        outcomes = await pool.fetch("select state, count(*) from howdah.job_history group by state order by state")
        [likes] = await pool.fetch(
            "select sum(likes) as likes, count(*) filter (where likes > 0) as posts from app.posts",
        )
        [jobs] = await pool.fetch(
            """select count(*) / extract(epoch from max(h.finished_at) - min(h.created_at)) as jobs_per_second,
                 (select sum(a.attempt - 1) from howdah.job_history a) as retried,
                 percentile_cont(array[0.5, 0.99]) within group (
                   order by extract(epoch from h.started_at - h.ready_at)) as waits
               from howdah.job_history h where h.kind = 'sync_like_count'"""
        )
        return cls(
            actions=crowd.done,
            in_open_transactions=crowd.in_open_transactions,
            outlived=crowd.outlived,
            likes=likes["likes"],
            posts=likes["posts"],
            outcomes={"completed": 0, "dead": 0, "cancelled": 0}
            | {row["state"]: row["count"] for row in outcomes}
            | {"retried": jobs["retried"]},
            rescued=len(held),
            jobs_per_second=float(jobs["jobs_per_second"]),
            wait_p50=jobs["waits"][0],
            wait_p99=jobs["waits"][1],
        )


def table(numbers: Numbers, scenes: list[Scene]) -> Table:
    """Lay the numbers out for people, and what each scene has to show."""
    rows = Table(show_header=False, title="The demonstration")
    rows.add_column()
    rows.add_column(justify="right")
    rows.add_row("actions (likes and unlikes)", f"{numbers.actions:,}")
    rows.add_row("… in transactions held open", f"{numbers.in_open_transactions:,}")
    rows.add_row("… transactions that outlived a count of their post", f"{numbers.outlived:,}")
    rows.add_row("likes at the end, all counted", f"{numbers.likes:,} on {numbers.posts} posts")
    for scene in scenes:
        rows.add_section()
        for what, shown in scene.shown:
            rows.add_row(what, shown)
    rows.add_section()
    for outcome, jobs in numbers.outcomes.items():
        rows.add_row(f"jobs {outcome}", f"{jobs:,}")
    rows.add_row("jobs rescued from the killed daemon", f"{numbers.rescued:,}")
    rows.add_section()
    rows.add_row("like counts per second", f"{numbers.jobs_per_second:,.0f}")
    rows.add_row("… wait p50", f"{numbers.wait_p50 * 1000:,.1f} ms")
    rows.add_row("… wait p99", f"{numbers.wait_p99 * 1000:,.1f} ms")
    return rows
