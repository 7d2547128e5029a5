"""The people: many sessions that like and unlike at once, some of them in transactions that stay open for a while."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from itertools import accumulate
from typing import TYPE_CHECKING

from demo.errors import DemoError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from random import Random
    from uuid import UUID

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

CLICKERS, HOLDERS = 10, 2
_PATIENCE = 5.0  # seconds that an open transaction waits for the job that it wants to outlive
_LAST_POSTS, _LAST_PATIENCE = 20, 15.0
_LOOK = 0.05


class _SecondThoughtsError(Exception):
    """Somebody takes everything back and rolls back."""


class Crowd:
    """Plays `actions` likes and unlikes, and keeps its own books of who likes what.

    Everybody acts for sessions of their own. So the books are exact, and an open transaction holds up nobody: that the
    touched posts are the same for all is the point.
    """

    def __init__(self, pool: asyncpg.Pool, random: Random, actions: int) -> None:
        self.halfway = asyncio.Event()
        self.done = 0
        self.in_open_transactions = 0
        self.outlived = 0  # open transactions during which a job counted a post that they had liked
        self.likes: set[tuple[UUID, UUID]] = set()
        self._pool = pool
        self._random = random
        self._actions = actions
        self._posts: list[UUID] = []
        self._sessions: list[UUID] = []
        self._popularity: list[float] = []

    @asynccontextmanager
    async def playing(self) -> AsyncIterator[asyncio.Task[None]]:
        """Let them play, and give the task to wait for; nobody plays on after the end."""
        task = asyncio.create_task(self._play())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _play(self) -> None:
        try:
            self._posts = [
                row["id"] for row in await self._pool.fetch("select id from app.posts order by created_at, id")
            ]
            self._popularity = list(accumulate(1 / place for place in range(1, len(self._posts) + 1)))
            self._sessions = [row["id"] for row in await self._pool.fetch("select id from app.sessions order by id")]
            people = CLICKERS + HOLDERS
            async with asyncio.TaskGroup() as group:
                for person in range(people):
                    act = self._click if person < CLICKERS else self._hold
                    group.create_task(act(self._sessions[person::people]))
        finally:
            self.halfway.set()  # whoever waits for it must not wait for a crowd that has failed

    async def _click(self, sessions: list[UUID]) -> None:
        """Act at once, mostly on one post, sometimes on a few in one transaction, in whatever order they come."""
        async with self._pool.acquire() as connection:
            while self.done < self._actions:
                session = self._random.choice(sessions)
                posts = self._some_posts(1 if self._random.random() < 0.9 else 4)
                async with connection.transaction():
                    liked = await _toggle(connection, posts, session)
                self._write_down(session, liked)

    async def _hold(self, sessions: list[UUID]) -> None:
        """Act in a transaction, and end it only when a job has counted one of its posts from beginning to end."""
        async with self._pool.acquire() as connection:
            while self.done < self._actions:
                session = self._random.choice(sessions)
                posts = self._some_posts(3)
                with suppress(_SecondThoughtsError):
                    async with connection.transaction():
                        liked = await _toggle(connection, posts, session)
                        now = await _clock(connection)
                        self.outlived += await self._counted(posts, now, at_least=1, patience=_PATIENCE)
                        if self._random.random() < 0.25:
                            raise _SecondThoughtsError
                    self._write_down(session, liked)
                    self.in_open_transactions += len(liked)

    async def have_the_last_word(self) -> None:
        """Like in an open transaction, and commit when the jobs for earlier likes have run: nothing comes after that.

        Called when nobody else plays and no job is left. While others go on liking, the next count mends what an
        earlier one has missed; here nobody mends anything.
        """
        posts = self._posts[:_LAST_POSTS]
        early, late = self._sessions[:2]
        async with self._pool.acquire() as connection:
            now = await _clock(connection)
            self._write_down(early, await _toggle(connection, posts, early))
            async with connection.transaction():
                liked = await _toggle(connection, posts, late)
                if not await self._counted(posts, now, at_least=len(posts), patience=_LAST_PATIENCE):
                    raise DemoError(f"{len(posts)} posts were liked, and not all counted within {_LAST_PATIENCE:g} s")
            self._write_down(late, liked)
            self.in_open_transactions += len(liked)
            self.outlived += 1

    async def _counted(self, posts: list[UUID], since: datetime, *, at_least: int, patience: float) -> bool:
        """Wait until jobs that were claimed since then have counted so many of the posts; False if it takes too long."""
        deadline = asyncio.get_running_loop().time() + patience
        while asyncio.get_running_loop().time() < deadline:
            counted = await self._pool.fetchval(
                """select count(distinct h.payload ->> 'post_id') from howdah.job_history h
                   where h.claimed_at > $1 and h.state = 'completed' and h.kind = 'sync_like_count'
                     and h.payload ->> 'post_id' = any ($2::text[])""",
                since,
                [str(post) for post in posts],
            )
            if counted >= at_least:
                return True
            await asyncio.sleep(_LOOK)
        return False

    def _some_posts(self, count: int) -> list[UUID]:
        """Choose different posts; some are liked far more than others."""
        chosen = self._random.choices(self._posts, cum_weights=self._popularity, k=count)
        return list(dict.fromkeys(chosen))

    def _write_down(self, session: UUID, liked: dict[UUID, bool]) -> None:
        for post, likes_it in liked.items():
            (self.likes.add if likes_it else self.likes.discard)((post, session))
        self.done += len(liked)
        if self.done >= self._actions // 2:
            self.halfway.set()


async def _toggle(connection: PoolConnectionProxy, posts: list[UUID], session: UUID) -> dict[UUID, bool]:
    return {post: await connection.fetchval("select app.toggle_like($1, $2)", post, session) for post in posts}


async def _clock(connection: PoolConnectionProxy) -> datetime:
    now: datetime = await connection.fetchval("select clock_timestamp()")
    return now
