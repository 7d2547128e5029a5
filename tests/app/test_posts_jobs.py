"""The posts part's jobs, run by real daemons."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from support.eventually import aeventually
from support.facts import count_ends
from support.jobs import enqueue, enqueue_coalesced, refused, status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg
    from conftest import StartApp
    from support.daemon import Daemon

    Connect = Callable[[], Awaitable[asyncpg.Connection]]
    StartDaemon = Callable[[], Awaitable[Daemon]]

    from support.figures import Figures


@pytest.fixture
async def app(connection: asyncpg.Connection) -> asyncpg.Connection:
    await connection.execute("update app.settings set like_sync_delay = '50 ms'")
    return connection


@pytest.fixture
def daemon(app_daemon: StartApp) -> StartDaemon:
    return partial(app_daemon, "posts")


async def test_a_like_committed_after_the_job_of_an_earlier_one_has_run_leads_to_another_count(
    app: asyncpg.Connection, connect: Connect, daemon: StartDaemon
) -> None:
    await daemon()
    post, late = await new_post(app), await connect()
    await toggle(app, post)
    await late.execute("begin")
    await toggle(late, post)
    await aeventually(lambda: likes(app, post, 1))
    await aeventually(lambda: idle(app))
    await late.execute("commit")
    await aeventually(lambda: likes(app, post, 2))
    await aeventually(lambda: idle(app))
    assert await app.fetchval("select count(*) from app.like_drift") == 0
    # One count for the likes that were there, one for the late one.
    assert await counts(app) == 2


async def test_a_steady_stream_of_likes_is_counted_once_per_delay_while_it_lasts(
    app: asyncpg.Connection, daemon: StartDaemon
) -> None:
    await app.execute("update app.settings set like_sync_delay = '200 ms'")
    await daemon()
    post, likes_given = await new_post(app), 0
    began = monotonic()
    while await counts(app) < 5 and monotonic() < began + 20:
        await toggle(app, post)
        likes_given += 1
    most = (monotonic() - began) / 0.2 + 1
    await aeventually(lambda: idle(app))
    assert 5 <= await counts(app) <= most + 1  # and one for the likes after the last
    assert await likes(app, post, likes_given)


@pytest.mark.faults
@pytest.mark.fault("Process", "killed while it waits for the row to be counted into", "another counts")
async def test_a_count_that_died_with_its_worker_is_made_by_another(
    app: asyncpg.Connection, connect: Connect, daemon: StartDaemon, figures: Figures
) -> None:
    post, editor = await new_post(app), await connect()
    first = await daemon()
    await editor.execute("begin")
    await editor.execute("update app.posts set updated_at = now() where id = $1", post)
    await toggle(app, post)
    await aeventually(lambda: app.fetchval("select count(*) from howdah.jobs where leased_by = $1", first.worker))
    first.kill()
    await editor.execute("commit")
    second = await daemon()
    await aeventually(lambda: idle(app))
    assert await likes(app, post, 1)
    job = await app.fetchrow("select worker, attempt, state from howdah.job_status")
    assert tuple(job) == (second.worker, 1, "completed")
    assert await second.metric("howdah_rescued_total") == 1
    figures.faults += 1
    await count_ends(app, figures)


async def test_a_count_of_a_post_that_is_gone_says_so_and_is_no_failure(
    app: asyncpg.Connection, daemon: StartDaemon
) -> None:
    await daemon()
    job = await ended(app, await enqueue(app, "sync_like_count", {"post_id": str(uuid4())}))
    assert (job["state"], job["result"], job["errors"]) == ("completed", {"likes": None}, None)


async def test_a_count_without_its_post_is_refused_at_enqueue(app: asyncpg.Connection, daemon: StartDaemon) -> None:
    await daemon()
    with refused("JB003", naming="post_id"):
        await enqueue(app, "sync_like_count", {})
    with refused("JB003", naming="post_id"):
        await enqueue_coalesced(app, "sync_like_count", {})


async def test_the_repair_corrects_all_counts_and_tells_how_far_it_is(
    app: asyncpg.Connection, daemon: StartDaemon
) -> None:
    await app.execute("insert into app.posts (likes) select place % 2 from generate_series(1, 1200) place")
    await daemon()
    job = await ended(app, await enqueue(app, "resync_like_counts"))
    assert (job["state"], job["result"]) == ("completed", {"checked": 1200, "repaired": 600})
    assert job["progress"] == {"checked": 1200, "repaired": 600, "total": 1200}
    assert await app.fetchval("select count(*) from app.like_drift") == 0


async def test_the_ranking_covers_as_many_posts_as_it_is_told(app: asyncpg.Connection, daemon: StartDaemon) -> None:
    await app.execute("insert into app.posts select from generate_series(1, 5)")
    await daemon()
    job = await ended(app, await enqueue(app, "recompute_rankings", {"limit": 3}))
    assert (job["state"], job["result"]) == ("completed", {"changed": 3})
    job = await ended(app, await enqueue(app, "recompute_rankings"))
    assert job["state"] == "completed"
    assert await app.fetchval("select count(*) from app.posts where rank > 0") == 5


async def test_the_cleanup_deletes_what_expired_long_enough_ago_and_tells_how_much(
    app: asyncpg.Connection, daemon: StartDaemon
) -> None:
    await app.execute(
        "insert into app.sessions (expires_at) select now() - make_interval(days => n) from generate_series(0, 9) n"
    )
    await app.execute(
        """with known as (insert into app.auth_users (id, email) values (gen_random_uuid(), 'a@example.org') returning id)
           insert into app.users (id, email) select k.id, 'a@example.org' from known k"""
    )
    await app.execute(
        "insert into app.user_activity_log (user_id, action, created_at)"
        " select u.id, 'login', now() - make_interval(days => n) from app.users u, generate_series(0, 9) n"
    )
    await daemon()
    job = await ended(app, await enqueue(app, "cleanup_expired", {"older_than_days": 5}))
    assert (job["state"], job["result"]) == ("completed", {"sessions": 5, "activity": 5, "images": 0})
    assert job["progress"] == {"sessions": 5, "activity": 5, "images": 0}
    assert await app.fetchval("select count(*) from app.sessions") == 5
    assert await app.fetchval("select count(*) from app.user_activity_log") == 5


# -- words for the above ----------------------------------------------------------------------------------------------


async def new_post(connection: asyncpg.Connection) -> UUID:
    post: UUID = await connection.fetchval("insert into app.posts default values returning id")
    return post


async def toggle(connection: asyncpg.Connection, post: UUID) -> None:
    """Like a post in a session of its own."""
    session = await connection.fetchval("insert into app.sessions default values returning id")
    await connection.execute("select app.toggle_like($1, $2)", post, session)


async def likes(connection: asyncpg.Connection, post: UUID, expected: int) -> bool:
    stored: int = await connection.fetchval("select likes from app.posts where id = $1", post)
    return stored == expected


async def counts(connection: asyncpg.Connection) -> int:
    """Tell how many counts have been made."""
    made: int = await connection.fetchval(
        "select count(*) from howdah.job_status where kind = 'sync_like_count' and state = 'completed'"
    )
    return made


async def idle(connection: asyncpg.Connection) -> bool:
    left: int = await connection.fetchval(
        "select (select count(*) from howdah.events) + (select count(*) from howdah.jobs)"
    )
    return left == 0


async def ended(connection: asyncpg.Connection, job: int) -> asyncpg.Record:
    """Wait for the end of a job, and give what it left."""

    async def final() -> asyncpg.Record | None:
        row = await status(connection, job)
        return row if row["state"] in {"completed", "dead", "cancelled"} else None

    row = await aeventually(final)
    assert row is not None
    return row
