"""Image files and their rows, in the order that leaves no file which nobody can find: row, file, shown; gone, file, row."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from handlers.storage import Storage  # noqa: TC001 - it brings along the lifespan `storage`

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    import asyncpg

    from handlers.imaging import Form
    from howdah import Job

#: The variant that the others are made from.
FULL = "full"

_GRACE = timedelta(hours=1)  # longer than any attempt takes from the first row to the last word
_DELETES = 8  # at once


@dataclass(frozen=True, slots=True)
class Picture:
    """What a post is to show: the image_url, and the digest of what was found there."""

    post_id: UUID
    image_url: str
    source: str


async def unwanted(job: Job[Any], post_id: UUID, image_url: str) -> str | None:
    """Tell why a post's forms of an image are not wanted, if they are not."""
    async with job.connection() as connection:
        why: str | None = await connection.fetchval("select app.image_unwanted($1, $2)", post_id, image_url)
        return why


async def full_image(job: Job[Any], post_id: UUID, *, limit: int) -> tuple[bytes, str] | None:
    """Give the file of the full image that a post shows, and its source; None: it shows none."""
    async with job.connection() as connection:
        row = await connection.fetchrow(
            "select key, source from app.post_images where post_id = $1 and variant = $2", post_id, FULL
        )
    if row is None:
        return None
    storage: Storage = job.resources["storage"]
    return await storage.get(row["key"], limit=limit), row["source"]


async def show(job: Job[Any], picture: Picture, forms: Mapping[str, Form]) -> str | None:
    """Write the files, then have the post show them; tell why not, if they are not wanted any more.

    Keys are made of post, source and variant: an attempt that is repeated writes the same files. What is written and not shown is
    removed by `remove_unused`.
    """
    storage: Storage = job.resources["storage"]
    files = {f"posts/{picture.post_id}/{picture.source}-{variant}.webp": variant for variant in forms}
    async with job.connection() as connection:
        for key, variant in files.items():  # a commit each: nobody who holds one row waits for another
            form = forms[variant]
            await connection.execute(
                "select app.expect_image($1, $2, $3, $4, $5, $6, $7)",
                key, variant, form.width, form.height, len(form.body), storage.url(key), picture.source,
            )  # fmt: skip
    for key, variant in files.items():
        await storage.put(key, forms[variant].body, "image/webp")
    async with job.connection() as connection:
        why: str | None = await connection.fetchval(
            "select app.show_images($1, $2, $3, $4)", picture.post_id, picture.image_url, picture.source, list(files)
        )
        return why


async def remove_unused(connection: asyncpg.Connection, storage: Storage, count: int) -> tuple[int, list[Exception]]:
    """Remove at most `count` files that no post shows; give how many, and what went wrong with others, which keep their rows.

    The rows are held until the files are gone, and deleted last: if this is cut short, they are found again.
    """
    async with connection.transaction():
        rows = await connection.fetch("select * from app.unused_images($1, $2)", _GRACE, count)
        turns = asyncio.Semaphore(_DELETES)

        async def remove(key: str) -> Exception | None:
            async with turns:
                try:
                    await storage.delete(key)
                except Exception as error:
                    return error
                return None

        problems = await asyncio.gather(*(remove(row["key"]) for row in rows))
        gone = [row["id"] for row, problem in zip(rows, problems, strict=True) if problem is None]
        kept = [row["id"] for row, problem in zip(rows, problems, strict=True) if problem is not None]
        await connection.execute("delete from app.post_images where id = any ($1)", gone)
        # To the end of the line: the others come next.
        await connection.execute("update app.post_images set touched_at = now() where id = any ($1)", kept)
    return len(gone), [problem for problem in problems if problem is not None]
