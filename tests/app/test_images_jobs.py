"""The images of posts, by real daemons: what becomes of good pictures and of every sort of bad ones, and of a worker that dies."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from support.eventually import aeventually
from support.facts import count_ends
from support.jobs import enqueue
from support.pictures import SVG, animation, bomb, chunks_of, encoded, palette_with_a_hole, photograph, two_halves
from support.web import Web, website

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from uuid import UUID

    import asyncpg
    from conftest import StartApp
    from support.daemon import Daemon

    Connect = Callable[[], Awaitable[asyncpg.Connection]]
    StartDaemon = Callable[..., Awaitable[Daemon]]

    from support.figures import Figures


@pytest.fixture
async def site() -> AsyncIterator[Web]:
    async with website() as site:
        yield site


@pytest.fixture
def daemon(app_daemon: StartApp) -> StartDaemon:
    return partial(
        app_daemon,
        "images",
        "posts",
        APP_FETCH_ALLOW="127.0.0.0/8",
        APP_FETCH_TIMEOUT=1.5,
        APP_FETCH_MAX_BYTES=2_000_000,
    )


async def test_good_pictures_are_shown_and_bad_ones_end_with_a_reason_and_cost_their_worker_nothing(
    connection: asyncpg.Connection, site: Web, daemon: StartDaemon, tmp_path: Path
) -> None:
    worker = await daemon()
    good = {
        "photo": site.page("/photo.jpg", photograph()),
        "gif": site.page("/gif", animation()),
        "hole": site.page("/hole.png", palette_with_a_hole()),
        "dot": site.page("/dot", encoded(two_halves(1, 1), "PNG")),
    }
    bad = {
        site.page("/cut.jpg", photograph(400, 300)[:-500]): "damaged or cut off",
        site.page("/bomb.png", bomb()): "30,000 by 30,000 pixels",
        site.page("/svg.jpg", SVG, Content_Type="image/jpeg"): "no JPEG, PNG, WebP or GIF",
        site.page("/large.jpg", bytes(2_000_001)): "more than 2,000,000 bytes",
        site.page("/gone.jpg", status=404): "is answered with 404",
        "http://10.0.0.1/a.jpg": "not in a public network",
        "file:///etc/passwd": "only http and https",
        site.page("/inward.jpg", status=302, Location="http://169.254.169.254/"): "169.254.169.254/ is refused",
    }
    unwell = {
        site.put("/slow.jpg", drips): "is not there within 1.5 s",
        site.put("/breaks.jpg", breaks_off): "the server closed before the end",
        site.page("/busy.jpg", status=503): "is answered with 503",
    }
    posts = {name: await new_post(connection, url) for name, url in good.items()}
    for url in (*bad, *unwell):
        await new_post(connection, url)
    await aeventually(lambda: ended(connection, 2 * len(good) + len(bad)), timeout=30)
    await aeventually(lambda: failed_once(connection, list(unwell)), timeout=30)

    ends = {row["url"]: row for row in await connection.fetch(_ENDS)}
    for url, problem in bad.items():
        assert (ends[url]["state"], ends[url]["attempt"]) == ("dead", 1), ends[url]
        assert problem in ends[url]["error"], ends[url]
        assert "Traceback" not in ends[url]["error"]
    for url, problem in unwell.items():
        assert ends[url]["state"] in {"retrying", "ready", "running"}, ends[url]
        assert problem in ends[url]["error"], ends[url]

    sizes = {name: await shown(connection, post) for name, post in posts.items()}
    assert sizes["photo"] == {
        "full": (1365, 2048),
        "thumbnail_160": (107, 160),
        "thumbnail_480": (320, 480),
        "thumbnail_960": (640, 960),
    }
    assert set(sizes["gif"].values()) == {(40, 30)}
    assert set(sizes["dot"].values()) == {(1, 1)}
    assert (ends[good["gif"]]["state"], ends[good["gif"]]["result"]["source"]) == (
        "completed",
        {"format": "GIF", "frames": 3},
    )
    rows = await connection.fetch("select * from app.post_images")
    assert len(rows) == 16
    files = files_of(tmp_path)
    assert {row["key"]: row["bytes"] for row in rows} == {key: len(body) for key, body in files.items()}
    assert all(row["url"].endswith(row["key"]) for row in rows)
    assert not {"EXIF", "XMP ", "ICCP", "ANIM"} & {name for body in files.values() for name in chunks_of(body)}

    # The same process still works, and none of its lives was lost.
    again = await new_post(connection, good["photo"])
    await aeventually(lambda: shows(connection, again, 4))
    assert worker.process.poll() is None
    assert await worker.metric("howdah_rescued_total") == 0
    assert len(children_of(worker)) == 0


@pytest.mark.faults
@pytest.mark.fault(
    "Process", "killed between a file and its row", "shown in the end, and no file is left that nobody finds"
)
async def test_a_worker_killed_between_the_file_and_the_row_leaves_nothing_that_nobody_finds(
    connection: asyncpg.Connection, connect: Connect, site: Web, daemon: StartDaemon, tmp_path: Path, figures: Figures
) -> None:
    """Somebody edits both posts meanwhile, so the job has written its file and waits to have it shown."""
    first = await daemon()
    editor = await connect()
    address = site.page("/a.png", encoded(two_halves(300, 200), "PNG"))
    posts = [await new_post(connection, address) for _ in range(2)]
    await editor.execute("begin")
    await editor.execute("update app.posts set updated_at = now() where id = any ($1)", posts)
    await aeventually(lambda: waiting_to_show(connection, 2))
    assert len(files_of(tmp_path)) == 2
    first.kill()
    # What it had sent already the server would still do, in its name.
    await connection.execute(f"select pg_terminate_backend(a.pid, 5000) {_WAITING}")
    await aeventually(lambda: waiting_to_show(connection, 0))
    kept, deleted = posts
    await editor.execute("commit")
    await connection.execute("delete from app.posts where id = $1", deleted)
    assert await connection.fetchval("select count(*) from app.post_images where post_id is null") == 2

    await daemon()
    await aeventually(lambda: shows(connection, kept, 4))
    await aeventually(lambda: settled(connection))
    assert len(files_of(tmp_path)) == 5
    await connection.execute("update app.post_images set touched_at = now() - interval '2 hours'")
    job = await enqueue(connection, "cleanup_expired")
    await aeventually(lambda: settled(connection))
    row = await connection.fetchrow("select state, result from howdah.job_status where id = $1", job)
    assert (row["state"], row["result"]["images"]) == ("completed", 1)
    rows = await connection.fetch("select key, post_id from app.post_images")
    assert {row["post_id"] for row in rows} == {kept}
    assert {row["key"] for row in rows} == set(files_of(tmp_path))
    figures.faults += 1
    await count_ends(connection, figures)


async def test_an_image_that_changes_while_the_old_one_is_fetched_is_the_one_that_is_shown(
    connection: asyncpg.Connection, site: Web, daemon: StartDaemon
) -> None:
    await daemon()
    release = asyncio.Event()

    async def old(_request: web.Request) -> web.Response:
        await release.wait()
        return web.Response(body=encoded(two_halves(30, 20), "PNG"))

    post = await new_post(connection, site.put("/old", old))
    await aeventually(lambda: "/old" in site.asked)
    new = site.page("/new", encoded(two_halves(60, 40), "PNG"))
    await connection.execute("update app.posts set image_url = $2 where id = $1", post, new)
    await aeventually(lambda: shows(connection, post, 4))
    release.set()
    await aeventually(lambda: settled(connection))
    assert (await shown(connection, post))["full"] == (60, 40)
    ends = await connection.fetch(
        "select state, error, cancel_reason from howdah.job_status where kind = 'process_image' order by id"
    )
    assert [(row["state"], row["cancel_reason"]) for row in ends] == [
        ("cancelled", "the post's image was changed"),
        ("completed", None),
    ]


# -- words for the above ----------------------------------------------------------------------------------------------

_WAITING = """from pg_stat_activity a
              where a.datname = current_database() and a.query like '%show_images%' and a.wait_event_type = 'Lock'"""
_ENDS = """select j.payload ->> 'image_url' as url, j.state, j.attempt, j.error, j.result
           from howdah.job_status j where j.kind = 'process_image'"""


async def drips(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b".")
        await asyncio.sleep(0.05)


async def breaks_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "10000"})
    await response.prepare(request)
    await response.write(bytes(5000))
    assert request.transport is not None
    request.transport.close()
    return response


async def new_post(connection: asyncpg.Connection, image_url: str) -> UUID:
    post: UUID = await connection.fetchval("insert into app.posts (image_url) values ($1) returning id", image_url)
    return post


async def shown(connection: asyncpg.Connection, post: UUID) -> dict[str, tuple[int, int]]:
    rows = await connection.fetch("select variant, width, height from app.post_images where post_id = $1", post)
    return {row["variant"]: (row["width"], row["height"]) for row in rows}


async def shows(connection: asyncpg.Connection, post: UUID, count: int) -> bool:
    return len(await shown(connection, post)) == count


async def waiting_to_show(connection: asyncpg.Connection, count: int) -> bool:
    found: int = await connection.fetchval(f"select count(*) {_WAITING}")
    return found == count


async def settled(connection: asyncpg.Connection) -> bool:
    """Tell whether no event and no job is left."""
    left: int = await connection.fetchval(
        "select (select count(*) from howdah.events) + (select count(*) from howdah.jobs)"
    )
    return left == 0


async def ended(connection: asyncpg.Connection, count: int) -> bool:
    found: int = await connection.fetchval("select count(*) from howdah.job_history")
    return found == count


async def failed_once(connection: asyncpg.Connection, urls: list[str]) -> bool:
    found: int = await connection.fetchval(
        "select count(*) from howdah.job_status where payload ->> 'image_url' = any ($1) and error is not null", urls
    )
    return found == len(urls)


def files_of(folder: Path) -> dict[str, bytes]:
    """Give the files in the storage of a test's daemons, by key."""
    storage = folder / "storage"
    return {str(path.relative_to(storage)): path.read_bytes() for path in storage.rglob("*") if path.suffix == ".webp"}


def children_of(daemon: Daemon) -> list[str]:
    pid = daemon.process.pid
    return [
        child
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text(encoding="ascii").split()
    ]
