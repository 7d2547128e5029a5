"""The handlers of images, one attempt at a time: what is shown, what is not wanted any more, and what is removed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from aiohttp import web
from support.eventually import aeventually
from support.jobs import waits_for_lock
from support.pictures import encoded, two_halves
from support.s3 import s3
from support.web import Web, website

from handlers.addresses import Allowed
from handlers.fetching import opened
from handlers.images import generate_thumbnail, process_image
from handlers.imaging import BusyError, Pixels
from handlers.posts import cleanup_expired
from handlers.storage import Storage
from howdah.testing import run_job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from howdah.testing import JobOutcome

    Connect = Callable[[], Awaitable[asyncpg.Connection]]


@pytest.fixture
async def site() -> AsyncIterator[Web]:
    async with website() as site:
        site.page("/a", encoded(two_halves(600, 300), "PNG"))
        site.page("/b", encoded(two_halves(300, 600), "PNG"))
        yield site


@pytest.fixture
async def resources(tmp_path: Path) -> AsyncIterator[dict[str, Any]]:
    async with opened(Allowed(["127.0.0.0/8"]), timeout=10, limit=1_000_000) as fetcher:
        yield {"fetcher": fetcher, "pixels": Pixels(max_pixels=1_000_000), "storage": Storage(tmp_path.as_uri())}


@pytest.fixture
def app(connection: asyncpg.Connection, resources: dict[str, Any]) -> App:
    return App(connection, resources)


class App:
    """Posts, and attempts at the jobs of their images."""

    def __init__(self, connection: asyncpg.Connection, resources: dict[str, Any]) -> None:
        self.connection = connection
        self.resources = resources

    async def post(self, url: str | None) -> UUID:
        post: UUID = await self.connection.fetchval("insert into app.posts (image_url) values ($1) returning id", url)
        return post

    async def change(self, post: UUID, url: str | None) -> None:
        await self.connection.execute("update app.posts set image_url = $2 where id = $1", post, url)

    async def process(self, post: UUID, url: str, on: asyncpg.Connection | None = None) -> JobOutcome:
        payload = {"post_id": post, "image_url": url}
        return await run_job(process_image, payload, connection=on or self.connection, resources=self.resources)

    async def thumbnails(self, post: UUID, url: str, *sizes: int) -> JobOutcome:
        payload = {"post_id": post, "image_url": url, "sizes": sizes}
        return await run_job(generate_thumbnail, payload, connection=self.connection, resources=self.resources)

    async def clean_up(self) -> JobOutcome:
        return await run_job(cleanup_expired, {}, connection=self.connection, resources=self.resources)

    async def shown(self, post: UUID) -> dict[str, tuple[int, int]]:
        rows = await self.connection.fetch(
            "select variant, width, height from app.post_images where post_id = $1", post
        )
        return {row["variant"]: (row["width"], row["height"]) for row in rows}

    async def keys(self) -> set[str]:
        return {row["key"] for row in await self.connection.fetch("select key from app.post_images")}

    async def age(self) -> None:
        await self.connection.execute("update app.post_images set touched_at = touched_at - interval '61 minutes'")


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# -- what enqueues ----------------------------------------------------------------------------------------------------


async def test_a_post_with_an_image_and_every_change_of_it_are_followed_by_a_job_of_the_last_address(app: App) -> None:
    post, other = await app.post("http://x/1"), await app.post(None)
    await app.change(post, "http://x/2")
    await app.connection.execute("update app.posts set updated_at = now(), image_url = image_url")
    assert await app.connection.fetchval("select count(*) from howdah.events") == 2
    await app.connection.execute("select howdah.coalesce_events(100)")
    [job] = await app.connection.fetch("select kind, payload, priority, subject from howdah.job_status")
    assert tuple(job) == ("process_image", {"post_id": str(post), "image_url": "http://x/2"}, 3, f"post:{post}")
    await app.change(other, "http://x/3")
    assert await app.connection.fetchval("select key from howdah.events") == str(other)


async def test_a_change_cancels_the_jobs_of_what_was_before_and_so_does_the_end_of_the_post(app: App) -> None:
    changed, removed, deleted = [await app.post("http://x/1") for _ in range(3)]
    await app.connection.execute("select howdah.coalesce_events(100)")
    await app.change(changed, "http://x/2")
    await app.change(removed, None)
    await app.connection.execute("delete from app.posts where id = $1", deleted)
    rows = await app.connection.fetch("select subject, state, cancel_reason from howdah.job_status")
    assert {row["subject"]: (row["state"], row["cancel_reason"]) for row in rows} == {
        f"post:{changed}": ("cancelled", "the post's image was changed"),
        f"post:{removed}": ("cancelled", "the post's image was changed"),
        f"post:{deleted}": ("cancelled", "the post is gone"),
    }
    assert [row["key"] for row in await app.connection.fetch("select key from howdah.events")] == [str(changed)]


async def test_a_picture_in_place_of_its_address_is_refused_where_it_is_posted(app: App) -> None:
    for address in ("data:image/png;base64," + "A" * 3000, ""):
        with pytest.raises(asyncpg.CheckViolationError, match="image_url_is_an_address"):
            await app.post(address)


async def test_whoever_may_post_needs_no_right_to_enqueue(app: App) -> None:
    role = f"author_{uuid4().hex[:8]}"
    await app.connection.execute(f"create role {role}; grant usage on schema app to {role}")
    await app.connection.execute(f"grant select, insert, update, delete on app.posts to {role}")
    try:
        await app.connection.execute(f"set role {role}")
        post = await app.post("http://x/1")
        await app.change(post, "http://x/2")
        await app.connection.execute("delete from app.posts")
    finally:
        await app.connection.execute(f"reset role; drop owned by {role}; drop role {role}")


# -- what is shown ----------------------------------------------------------------------------------------------------


async def test_the_thumbnails_are_enqueued_with_the_end_of_the_image(app: App, site: Web) -> None:
    post = await app.post(site.address + "/a")
    outcome = await app.process(post, site.address + "/a")
    assert outcome.check().result["width"] == 600
    [thumbnail] = outcome.enqueued
    assert (thumbnail["kind"], thumbnail["priority"], thumbnail["subject"]) == ("generate_thumbnail", 1, f"post:{post}")
    assert thumbnail["payload"] == {
        "post_id": str(post),
        "image_url": site.address + "/a",
        "sizes": [160, 480, 960],
    }


async def test_there_is_one_file_for_each_size_and_none_is_enlarged(app: App, site: Web, tmp_path: Path) -> None:
    post = await app.post(site.address + "/a")
    await app.process(post, site.address + "/a")
    outcome = await app.thumbnails(post, site.address + "/a", 2000, 300, 1, 300)
    assert outcome.check().result == {"thumbnail_1": [1, 1], "thumbnail_300": [300, 150], "thumbnail_2000": [600, 300]}
    assert set(await app.shown(post)) == {"full", "thumbnail_1", "thumbnail_300", "thumbnail_2000"}
    assert files_of(tmp_path) == await app.keys()


async def test_attempts_that_are_repeated_or_run_at_once_leave_one_of_everything(
    app: App, site: Web, connect: Connect, tmp_path: Path
) -> None:
    post = await app.post(site.address + "/a")
    connections = [await connect() for _ in range(3)]
    outcomes = await asyncio.gather(*(app.process(post, site.address + "/a", on) for on in connections))
    assert [outcome.outcome for outcome in outcomes] == ["completed"] * 3
    for _ in range(2):
        assert (await app.thumbnails(post, site.address + "/a", 100)).completed
        assert (await app.process(post, site.address + "/a")).completed
    assert await app.shown(post) == {"full": (600, 300), "thumbnail_100": (100, 50)}
    assert files_of(tmp_path) == await app.keys()
    assert len(files_of(tmp_path)) == 2


async def test_a_new_image_takes_the_place_of_the_old_one_and_of_its_thumbnails_at_once(
    app: App, site: Web, tmp_path: Path
) -> None:
    post = await app.post(site.address + "/a")
    await app.process(post, site.address + "/a")
    await app.thumbnails(post, site.address + "/a", 100)
    await app.change(post, site.address + "/b")
    assert len(await app.shown(post)) == 2  # until there is another
    await app.process(post, site.address + "/b")
    assert await app.shown(post) == {"full": (300, 600)}
    assert len(files_of(tmp_path)) == 3
    await app.age()
    assert (await app.clean_up()).check().result["images"] == 2
    assert files_of(tmp_path) == await app.keys()
    assert await app.shown(post) == {"full": (300, 600)}


async def test_an_image_that_is_taken_away_is_shown_no_more(app: App, site: Web) -> None:
    post = await app.post(site.address + "/a")
    await app.process(post, site.address + "/a")
    await app.change(post, None)
    assert await app.shown(post) == {}


# -- what is not wanted any more --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("update app.posts set image_url = 'http://x/2' where id = $1", "the post has another image now"),
        ("update app.posts set image_url = null where id = $1", "the post has no image any more"),
        ("delete from app.posts where id = $1", "the post is gone"),
    ],
)
async def test_a_job_whose_image_is_not_wanted_any_more_ends_cancelled_and_shows_nothing(
    app: App, site: Web, connect: Connect, tmp_path: Path, statement: str, reason: str
) -> None:
    """The change comes while the image is on its way, and once before; nobody has told the job."""
    meanwhile = await connect()

    async def fetched_late(_request: web.Request) -> web.Response:
        await meanwhile.execute(statement, post)
        return web.Response(body=encoded(two_halves(60, 30), "PNG"))

    address = site.put("/late", fetched_late)
    post = await app.post(address)
    outcome = await app.process(post, address)
    assert (outcome.outcome, outcome.reason, outcome.enqueued) == ("cancelled", reason, [])
    assert await app.connection.fetchval("select count(*) from app.post_images where post_id is not null") == 0
    # The file that was written is known, and goes.
    assert files_of(tmp_path) == await app.keys()
    await app.age()
    assert (await app.clean_up()).check().result["images"] == 1
    assert files_of(tmp_path) == set()

    again = await app.process(post, address)
    assert (again.outcome, again.reason) == ("cancelled", reason)
    assert site.asked == ["/late"]
    thumbnails = await app.thumbnails(post, address, 100)
    assert (thumbnails.outcome, thumbnails.reason) == ("cancelled", reason)


async def test_a_change_that_is_not_committed_yet_is_waited_for(app: App, site: Web, connect: Connect) -> None:
    post = await app.post(site.address + "/a")
    author, worker = await connect(), await connect()
    await author.execute("begin")
    await author.execute("update app.posts set image_url = $2 where id = $1", post, site.address + "/b")
    job = asyncio.create_task(app.process(post, site.address + "/a", worker))
    await aeventually(lambda: waits_for_lock(app.connection, worker.get_server_pid()))
    await author.execute("commit")
    outcome = await job
    assert (outcome.outcome, outcome.reason) == ("cancelled", "the post has another image now")
    # And the change has left its own job behind.
    await app.connection.execute("select howdah.coalesce_events(100)")
    urls = await app.connection.fetch(
        "select payload ->> 'image_url' as url from howdah.job_status where state = 'ready'"
    )
    assert [row["url"] for row in urls] == [site.address + "/b"]


async def test_thumbnails_of_an_image_that_was_replaced_meanwhile_are_not_shown(app: App, site: Web) -> None:
    post = await app.post(site.address + "/a")
    await app.process(post, site.address + "/a")
    real = app.resources["storage"]

    class Slow:
        """The storage, which gives the old image; meanwhile the address leads to a new one, which is shown."""

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        async def get(self, key: str, *, limit: int) -> bytes:
            body: bytes = await real.get(key, limit=limit)
            site.pages["/a"] = site.pages["/b"]
            app.resources["storage"] = real
            await app.process(post, site.address + "/a")
            return body

    app.resources["storage"] = Slow()
    outcome = await app.thumbnails(post, site.address + "/a", 100)
    assert (outcome.outcome, outcome.reason) == ("cancelled", "the post shows another image now")
    assert await app.shown(post) == {"full": (300, 600)}


# -- what comes again later -------------------------------------------------------------------------------------------


async def test_a_server_that_says_when_to_come_again_is_obeyed(app: App, site: Web) -> None:
    address = site.page("/busy", status=429, Retry_After="90")
    outcome = await app.process(await app.post(address), address)
    assert outcome.snoozed is not None
    assert outcome.snoozed.total_seconds() == 90


async def test_a_job_without_a_seat_comes_again(app: App, site: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BusyError, "delay", 0.01)
    post = await app.post(site.address + "/a")
    async with asyncio.TaskGroup() as group:
        enough = asyncio.Event()

        async def sit() -> None:
            async with app.resources["pixels"].seat():
                await enough.wait()

        for _ in range(8):
            group.create_task(sit())
        await asyncio.sleep(0)
        assert (await app.process(post, site.address + "/a")).snoozed is not None
        enough.set()
    assert site.asked == []


# -- what is removed --------------------------------------------------------------------------------------------------


async def test_files_go_before_their_rows_and_what_cannot_be_removed_keeps_its_row(
    app: App, site: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with s3() as bucket:
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        app.resources["storage"] = Storage("s3://files/images")
        for path in ("/a", "/b"):
            post = await app.post(site.address + path)
            await app.process(post, site.address + path)
            await app.connection.execute("delete from app.posts where id = $1", post)
        assert len(bucket.objects) == 2
        assert (await app.clean_up()).check().result["images"] == 0  # within the hour
        await app.age()

        bucket.broken = True
        outcome = await app.clean_up()
        assert "2 files could not be removed" in str(outcome.error)
        assert len(await app.keys()) == 2
        bucket.broken = False
        await app.age()
        lost = next(iter(bucket.objects))
        del bucket.objects[lost]  # removed by a run that died before it came to the row
        assert (await app.clean_up()).check().result["images"] == 2
        assert (bucket.objects, await app.keys()) == ({}, set())


async def test_a_file_that_is_written_while_it_is_removed_is_there_at_the_end(
    app: App, site: Web, connect: Connect, tmp_path: Path
) -> None:
    post = await app.post(site.address + "/a")
    await app.process(post, site.address + "/a")
    await app.change(post, None)
    await app.age()
    await app.change(post, site.address + "/a")
    cleaner, worker = await connect(), await connect()
    real, job = app.resources["storage"], None

    class Slow:
        """The storage; the job that writes the file anew sets out when the file is about to be removed."""

        async def delete(self, key: str) -> None:
            nonlocal job
            job = asyncio.create_task(app.process(post, site.address + "/a", worker))
            await aeventually(lambda: waits_for_lock(app.connection, worker.get_server_pid()))
            await real.delete(key)

    outcome = await run_job(cleanup_expired, {}, connection=cleaner, resources={"storage": Slow()})
    assert outcome.check().result["images"] == 1
    assert job is not None
    assert (await job).completed
    assert await app.shown(post) == {"full": (600, 300)}
    assert files_of(tmp_path) == await app.keys()
    assert len(files_of(tmp_path)) == 1


async def test_the_cleanup_goes_batch_by_batch_and_tells_how_far_it_is(app: App) -> None:
    await app.connection.execute(
        """insert into app.post_images (key, variant, width, height, bytes, format, url, source, touched_at)
           select n::text, 'full', 1, 1, 1, 'webp', 'file:///x', 'x', now() - interval '2 hours' from generate_series(1, 250) n"""
    )
    outcome = await app.clean_up()
    assert [report["images"] for report in outcome.reports] == [100, 200, 250]
