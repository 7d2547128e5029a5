"""The posts part as the database keeps it: likes, counts, ranks and what expires."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import pytest
from support.eventually import aeventually
from support.jobs import claim, waits_for_lock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from support.cluster import Database

    Connect = Callable[[], Awaitable[asyncpg.Connection]]


@pytest.fixture
async def app(connection: asyncpg.Connection) -> asyncpg.Connection:
    await connection.execute("update app.settings set like_sync_delay = '0'")
    await connection.execute("set lock_timeout = '5s'")  # a wait that should not be is a failure, not a hanging test
    return connection


@pytest.fixture
async def impatient(connect: Callable[..., Awaitable[asyncpg.Connection]]) -> Connect:
    """Give connections on which a wait for a lock is an error after 200 ms."""
    return partial(connect, server_settings={"lock_timeout": "200ms"})


# -- likes ------------------------------------------------------------------------------------------------------------


async def test_toggle_like_tells_whether_it_is_liked_now(app: asyncpg.Connection) -> None:
    post, session = await new_post(app), await new_session(app)
    assert [await toggle(app, post, session) for _ in range(3)] == [True, False, True]


@pytest.mark.parametrize("liked_before", [0, 1])
async def test_of_two_toggles_of_the_same_pair_at_once_one_likes_and_one_takes_it_back(
    app: asyncpg.Connection, impatient: Connect, liked_before: int
) -> None:
    post, session = await new_post(app), await new_session(app)
    if liked_before:
        await toggle(app, post, session)
    first, second = await impatient(), await impatient()
    await second.execute("set lock_timeout = 0")
    held = first.transaction()
    await held.start()
    assert await toggle(first, post, session) is not bool(liked_before)
    waiting = asyncio.create_task(toggle(second, post, session))
    await aeventually(lambda: waits_for_lock(app, second.get_server_pid()))
    await held.commit()
    assert await waiting is bool(liked_before)
    assert await app.fetchval("select count(*) from app.post_ratings") == liked_before


async def test_many_toggles_of_the_same_pair_at_once_are_as_if_one_came_after_the_other(
    app: asyncpg.Connection, database: Database
) -> None:
    post, session = await new_post(app), await new_session(app)
    async with asyncpg.create_pool(database.url, min_size=8, max_size=8) as pool:
        answers = await asyncio.gather(
            *(pool.fetchval("select app.toggle_like($1, $2)", post, session) for _ in range(200))
        )
    assert answers.count(True) == answers.count(False) == 100
    assert await app.fetchval("select count(*) from app.post_ratings") == 0


@pytest.mark.parametrize("liked_before", [0, 1])
async def test_sessions_that_touch_two_posts_in_opposite_order_neither_wait_nor_deadlock(
    app: asyncpg.Connection, impatient: Connect, liked_before: int
) -> None:
    one, other = await new_post(app), await new_post(app)
    ann, bob = await new_session(app), await new_session(app)
    if liked_before:
        for post in (one, other):
            await toggle(app, post, ann)
            await toggle(app, post, bob)
    hers, his = await impatient(), await impatient()
    for connection in (hers, his):
        await connection.execute("begin")
    await toggle(hers, one, ann)
    await toggle(his, other, bob)
    await toggle(hers, other, ann)
    await toggle(his, one, bob)
    await hers.execute("commit")
    await his.execute("commit")
    assert await events(app) == {one: 2 + 2 * liked_before, other: 2 + 2 * liked_before}


async def test_a_like_does_not_wait_for_a_count_that_is_open_nor_a_count_for_a_like(
    app: asyncpg.Connection, impatient: Connect
) -> None:
    post = await new_post(app)
    counting, liking = await impatient(), await impatient()
    await liking.execute("begin")
    await toggle(liking, post, await new_session(app))
    await counting.execute("begin")
    assert await sync(counting, post) == 0
    await toggle(liking, post, await new_session(app))
    await liking.execute("commit")
    await counting.execute("commit")
    assert await work(app) == [post]
    assert await drift(app) == []


async def test_a_like_of_a_post_that_is_not_there_is_refused(app: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await toggle(app, uuid4(), await new_session(app))


# -- events -----------------------------------------------------------------------------------------------------------


async def test_a_thousand_likes_in_one_statement_are_one_event(app: asyncpg.Connection) -> None:
    post = await new_post(app)
    await app.execute("insert into app.sessions select from generate_series(1, 1000)")
    await app.execute("insert into app.post_ratings (post_id, session_id) select $1, s.id from app.sessions s", post)
    assert await events(app) == {post: 1}
    await app.execute("delete from app.post_ratings")
    assert await events(app) == {post: 2}


async def test_a_steady_stream_of_likes_makes_one_job_per_delay_counted_from_the_first(app: asyncpg.Connection) -> None:
    await app.execute("update app.settings set like_sync_delay = '1 hour'")
    post = await new_post(app)
    for _ in range(20):
        await toggle(app, post, await new_session(app))
    assert await coalesce(app) == 0
    # The hour of the first event is over, that of the last is not.
    await app.execute("update howdah.events set due_at = now() where id = (select min(id) from howdah.events)")
    assert await coalesce(app) == 1
    await toggle(app, post, await new_session(app))
    assert await coalesce(app) == 0
    assert await events(app) == {post: 1}


async def test_the_job_of_a_like_is_sync_like_count_with_its_post_and_priority_5(app: asyncpg.Connection) -> None:
    post = await new_post(app)
    await toggle(app, post, await new_session(app))
    await coalesce(app)
    job = await app.fetchrow("select kind, payload, priority from howdah.job_status")
    assert (job["kind"], job["payload"], job["priority"]) == ("sync_like_count", {"post_id": str(post)}, 5)


async def test_a_like_that_is_rolled_back_leaves_no_event(app: asyncpg.Connection, impatient: Connect) -> None:
    post = await new_post(app)
    connection = await impatient()
    await connection.execute("begin")
    await toggle(connection, post, await new_session(app))
    await connection.execute("rollback")
    assert await events(app) == {}


async def test_a_like_that_moves_to_another_post_counts_both_again(app: asyncpg.Connection) -> None:
    one, other = await new_post(app), await new_post(app)
    await toggle(app, one, await new_session(app))
    await app.execute("delete from howdah.events")
    await app.execute("update app.post_ratings set created_at = now()")
    assert await events(app) == {}
    await app.execute("update app.post_ratings set post_id = $1", other)
    assert await events(app) == {one: 1, other: 1}


async def test_deleting_a_post_takes_its_likes_along_and_leaves_nothing_to_count(app: asyncpg.Connection) -> None:
    post = await new_post(app)
    await toggle(app, post, await new_session(app))
    await app.execute("insert into app.comments (post_id) values ($1)", post)
    await app.execute("delete from howdah.events")
    await app.execute("delete from app.posts where id = $1", post)
    assert await app.fetchval("select count(*) from app.post_ratings") == 0
    assert await events(app) == {}
    assert await sync(app, post) is None


async def test_truncating_the_likes_leads_to_a_repair_of_all_counts(app: asyncpg.Connection) -> None:
    post = await new_post(app)
    await toggle(app, post, await new_session(app))
    await sync(app, post)
    await app.execute("truncate app.post_ratings")
    assert await app.fetchval("select count(*) from howdah.events where kind = 'resync_like_counts'") == 1


async def test_whoever_may_like_needs_no_right_to_enqueue(app: asyncpg.Connection) -> None:
    post, session = await new_post(app), await new_session(app)
    role = f"liker_{uuid4().hex[:8]}"
    await app.execute(f"create role {role}")
    try:
        await app.execute(f"grant usage on schema app to {role}")
        await app.execute(f"grant select, insert, delete on app.post_ratings to {role}")
        await app.execute(f"set role {role}")
        await toggle(app, post, session)
        await app.execute("reset role")
        assert await events(app) == {post: 1}
    finally:
        await app.execute(f"reset role; drop owned by {role}; drop role {role}")


# -- counts -----------------------------------------------------------------------------------------------------------


async def test_a_like_committed_after_the_job_of_an_earlier_one_has_run_leads_to_another_count(
    app: asyncpg.Connection, impatient: Connect
) -> None:
    post = await new_post(app)
    await toggle(app, post, await new_session(app))
    late = await impatient()
    await late.execute("begin")
    await toggle(late, post, await new_session(app))
    assert await work(app) == [post]
    assert await likes(app, post) == 1
    await late.execute("commit")
    assert await drift(app) == [post]
    assert await work(app) == [post]
    assert await likes(app, post) == 2
    assert await drift(app) == []


async def test_a_count_that_waited_for_another_counts_what_was_committed_meanwhile(
    app: asyncpg.Connection, impatient: Connect
) -> None:
    post = await new_post(app)
    first, second = await impatient(), await impatient()
    await second.execute("set lock_timeout = 0")
    await first.execute("begin")
    assert await sync(first, post) == 0
    waiting = asyncio.create_task(sync(second, post))
    await aeventually(lambda: waits_for_lock(app, second.get_server_pid()))
    await toggle(app, post, await new_session(app))
    await first.execute("commit")
    assert await waiting == 1
    assert await likes(app, post) == 1


async def test_a_count_with_an_older_snapshot_fails_rather_than_write_an_older_number(
    app: asyncpg.Connection, impatient: Connect
) -> None:
    post = await new_post(app, likes=1)  # what it will be: the first count changes nothing, and counts all the same
    old = await impatient()
    await old.execute("begin isolation level repeatable read")
    await likes(old, post)
    await toggle(app, post, await new_session(app))
    assert await sync(app, post) == 1
    with pytest.raises(asyncpg.SerializationError):
        await sync(old, post)


async def test_counts_stay_true_while_many_sessions_like_and_others_count(
    app: asyncpg.Connection, database: Database
) -> None:
    posts = [await new_post(app) for _ in range(3)]
    sessions = [await new_session(app) for _ in range(8)]

    async def like_and_count(pool: asyncpg.Pool, session: UUID) -> None:
        for turn in range(30):
            post = posts[turn % 3]
            async with pool.acquire() as connection:
                await toggle(connection, post, session)
                await sync(connection, post)

    async with asyncpg.create_pool(database.url, min_size=8, max_size=8) as pool:
        await asyncio.gather(*(like_and_count(pool, session) for session in sessions))
    # Each like was followed by a count that began after it; no job has run.
    assert await drift(app) == []


async def test_like_drift_names_the_stored_and_the_actual_count(app: asyncpg.Connection) -> None:
    await new_post(app)
    post = await new_post(app)
    await toggle(app, post, await new_session(app))
    assert [tuple(row) for row in await app.fetch("select post_id, stored, actual from app.like_drift")] == [
        (post, 0, 1)
    ]


async def test_updates_of_likes_are_heap_only(app: asyncpg.Connection) -> None:
    post = await new_post(app)
    for _ in range(20):
        await sync(app, post)
    updates, heap_only = await aeventually(lambda: update_counts(app))
    assert heap_only == updates


# -- repair, ranks, expiry --------------------------------------------------------------------------------------------


async def test_the_repair_corrects_what_has_drifted_and_touches_nothing_else(app: asyncpg.Connection) -> None:
    posts = sorted([await new_post(app) for _ in range(25)])
    await app.execute("update app.posts set likes = 7 where id = any ($1)", posts[3:6])
    before = await versions(app)
    past, seen = UUID(int=0), []
    while (row := await app.fetchrow("select * from app.resync_like_counts_batch($1, 10)", past))["last"] is not None:
        past = row["last"]
        seen.append((row["checked"], row["repaired"]))
    assert seen == [(10, 3), (10, 0), (5, 0)]
    assert await drift(app) == []
    after = await versions(app)
    assert [post for post in posts if before[post] != after[post]] == posts[3:6]


async def test_a_post_ranks_higher_the_newer_and_the_more_liked_it_is(app: asyncpg.Connection) -> None:
    old = await new_post(app, hours=30, likes=5)
    fresh = await new_post(app, hours=1, likes=5)
    liked = await new_post(app, hours=1, likes=50)
    assert await rank_all(app, 10) == 3
    assert await ranking(app) == [liked, fresh, old]


async def test_ranks_that_do_not_change_are_not_written(app: asyncpg.Connection) -> None:
    for hours in range(1, 6):
        await new_post(app, hours=hours, likes=hours)
    assert await rank_all(app, 10) == 5
    before = await versions(app)
    assert await rank_all(app, 10) == 0
    assert await versions(app) == before
    post = (await ranking(app))[0]
    await app.execute("update app.posts set likes = likes + 1 where id = $1", post)
    assert await rank_all(app, 10) == 1


async def test_only_the_newest_posts_are_ranked_and_the_others_keep_their_rank(app: asyncpg.Connection) -> None:
    posts = [await new_post(app, hours=hours) for hours in (1, 2, 3, 4)]
    assert await rank_all(app, 2) == 2
    assert await app.fetchval("select count(*) from app.posts where rank = 0 and id = any ($1)", posts[2:]) == 2


async def test_a_post_that_somebody_is_editing_does_not_hold_up_the_ranking(
    app: asyncpg.Connection, impatient: Connect
) -> None:
    edited, other = await new_post(app, hours=1), await new_post(app, hours=2)
    editor, ranker = await impatient(), await impatient()
    await editor.execute("begin")
    await editor.execute("update app.posts set updated_at = now() where id = $1", edited)
    assert await rank_all(ranker, 10) == 1
    await editor.execute("commit")
    assert await ranking(app) == [other, edited]
    assert await rank_all(ranker, 10) == 1
    assert await ranking(app) == [edited, other]


async def test_expired_sessions_go_in_batches_and_their_likes_stay(app: asyncpg.Connection) -> None:
    post = await new_post(app)
    for days in (0, 31, 32, 33):
        session = await new_session(app)
        await toggle(app, post, session)
        await app.execute(
            "update app.sessions set expires_at = now() - make_interval(days => $2) where id = $1", session, days
        )
    await app.execute("delete from howdah.events")
    deleted = [await app.fetchval("select app.delete_expired_sessions('30 days', 2)") for _ in range(3)]
    assert deleted == [2, 1, 0]
    assert await app.fetchval("select count(*) from app.sessions") == 1
    assert await app.fetchval("select count(*) from app.post_ratings") == 4
    assert await events(app) == {}


async def test_every_foreign_key_is_indexed(app: asyncpg.Connection) -> None:
    missing = await app.fetch(
        """select c.conrelid::regclass, c.conname from pg_constraint c
           where c.contype = 'f' and c.connamespace = 'app'::regnamespace
             and not exists (select from pg_index i where i.indrelid = c.conrelid and i.indkey[0] = c.conkey[1])"""
    )
    assert missing == []


# -- words for the above ----------------------------------------------------------------------------------------------


async def new_post(connection: asyncpg.Connection, *, hours: int = 0, likes: int = 0) -> UUID:
    """Half a minute older than `hours`: ages count in whole minutes, and none may end during a test."""
    return await connection.fetchval(
        "insert into app.posts (created_at, likes)"
        " values (now() - make_interval(hours => $1, secs => 30), $2) returning id",
        hours,
        likes,
    )


async def new_session(connection: asyncpg.Connection) -> UUID:
    return await connection.fetchval("insert into app.sessions default values returning id")


async def toggle(connection: asyncpg.Connection, post: UUID, session: UUID) -> bool:
    return await connection.fetchval("select app.toggle_like($1, $2)", post, session)


async def sync(connection: asyncpg.Connection, post: UUID) -> int | None:
    return await connection.fetchval("select app.sync_post_like_count($1)", post)


async def likes(connection: asyncpg.Connection, post: UUID) -> int:
    return await connection.fetchval("select likes from app.posts where id = $1", post)


async def drift(connection: asyncpg.Connection) -> list[UUID]:
    return [row["post_id"] for row in await connection.fetch("select post_id from app.like_drift")]


async def rank_all(connection: asyncpg.Connection, limit: int) -> int:
    return await connection.fetchval("select app.recompute_rankings($1)", limit)


async def ranking(connection: asyncpg.Connection) -> list[UUID]:
    return [row["id"] for row in await connection.fetch("select id from app.posts order by rank desc")]


async def versions(connection: asyncpg.Connection) -> dict[UUID, object]:
    return {row["id"]: row["ctid"] for row in await connection.fetch("select id, ctid from app.posts")}


async def update_counts(connection: asyncpg.Connection) -> tuple[int, int] | None:
    """Give how many updates of posts there were, and how many of them were heap-only; none yet: null."""
    row = await connection.fetchrow(
        "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relid = 'app.posts'::regclass"
    )
    return tuple(row) if row["n_tup_upd"] else None


async def events(connection: asyncpg.Connection) -> dict[UUID, int]:
    rows = await connection.fetch("select key, count(*) from howdah.events where kind = 'sync_like_count' group by key")
    return {UUID(row["key"]): row["count"] for row in rows}


async def coalesce(connection: asyncpg.Connection) -> int:
    return await connection.fetchval("select made from howdah.coalesce_events(1000)")


async def work(connection: asyncpg.Connection) -> list[UUID]:
    """Do what a worker does, once: make jobs of the events, claim them, count, complete. Give the posts."""
    await coalesce(connection)
    jobs = await claim(connection, kinds=["sync_like_count"])
    posts = [UUID(job.row["payload"]["post_id"]) for job in jobs]
    for job, post in zip(jobs, posts, strict=True):
        async with connection.transaction():
            await sync(connection, post)
            await connection.execute("select howdah.complete($1, $2)", job.id, job.lease)
    return posts
