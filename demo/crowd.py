"""The people: many sessions that like and unlike at once, some of them in transactions that stay open for a while."""

from __future__ import annotations

import asyncio
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random
    from uuid import UUID

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

CLICKERS, HOLDERS = 10, 2
_PATIENCE = 5.0  # seconds that an open transaction waits for the job that it wants to outlive
_LOOK = 0.05


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
        self._popularity: list[float] = []

    async def run(self) -> None:
        """Like and unlike until all actions are committed."""
        try:
            await self._run()
        finally:
            self.halfway.set()  # whoever waits for it must not wait for a crowd that has failed

    async def _run(self) -> None:
        self._posts = [row["id"] for row in await self._pool.fetch("select id from app.posts order by created_at, id")]
        self._popularity = list(accumulate(1 / place for place in range(1, len(self._posts) + 1)))
        sessions = [row["id"] for row in await self._pool.fetch("select id from app.sessions order by id")]
        people = CLICKERS + HOLDERS
        async with asyncio.TaskGroup() as group:
            for person in range(people):
                act = self._click if person < CLICKERS else self._hold
                group.create_task(act(sessions[person::people]))

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
        """Act in a transaction, and commit only when a job has counted one of its posts from beginning to end."""
        async with self._pool.acquire() as connection:
            while self.done < self._actions:
                session = self._random.choice(sessions)
                posts = self._some_posts(3)
                transaction = connection.transaction()
                await transaction.start()
                liked = await _toggle(connection, posts, session)
                self.outlived += await self._outlive_a_job(posts)
                if self._random.random() < 0.25:
                    await transaction.rollback()
                    continue
                await transaction.commit()
                self._write_down(session, liked)
                self.in_open_transactions += len(liked)

    async def _outlive_a_job(self, posts: list[UUID]) -> bool:
        """Wait until a job that was claimed from now on has ended; False if the crowd went home before."""
        now = await self._pool.fetchval("select clock_timestamp()")
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while asyncio.get_running_loop().time() < deadline:
            if await self._pool.fetchval(
                "select exists (select from howdah.job_history h where h.claimed_at > $1 and h.state = 'completed'"
                " and h.kind = 'sync_like_count' and h.payload ->> 'post_id' = any ($2::text[]))",
                now,
                [str(post) for post in posts],
            ):
                return True
            if self.done >= self._actions:
                return False
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
