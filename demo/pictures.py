"""The pictures' scene: posts with images of every sort, and some that mean harm; each ends as it should."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from aiohttp import web
from PIL import Image

from demo.picture_files import good_pictures, huge_gif
from demo.scene import Scene

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from random import Random

    import asyncpg

_SIZES = (160, 480, 960)
_LARGEST = 2048
#: What a WebP may be made of: pixels, alpha, and nothing about who made it and where.
_PLAIN = {"VP8 ", "VP8L", "VP8X", "ALPH"}


@dataclass(frozen=True)
class _Bad:
    """An image that must not be taken; None: there is none to serve, the address itself is bad."""

    body: bytes | None
    reason: str


class Pictures(Scene):
    """A dozen pictures become WebP files in four sizes; the hostile ones become jobs that are dead with their reason."""

    title = "pictures of every sort are posted, and some that mean harm"
    #: Elsewhere than here: a machine of the cloud's that would give away passwords.
    _inward: ClassVar[str] = "http://169.254.169.254/latest/meta-data/a.jpg"

    def __init__(self, pool: asyncpg.Pool, random: Random, folder: Path) -> None:
        super().__init__(pool, random, folder)
        self._good: dict[str, tuple[bytes, tuple[int, int]]] = good_pictures(random)
        self._bad = {
            "/photo-that-is-a-page.jpg": _Bad(
                b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no JPEG, PNG, WebP or GIF"
            ),
            "/half-a-photo.jpg": _Bad(self._good["/photo.jpg"][0][:-2000], "damaged or cut off"),
            "/nine-hundred-megapixels.gif": _Bad(huge_gif(), "30,000 by 30,000 pixels"),
            self._inward: _Bad(None, "not in a public network"),
        }
        self._address = ""

    @asynccontextmanager
    async def servers(self) -> AsyncIterator[dict[str, str]]:
        """Serve the pictures."""
        application = web.Application()
        for path, (body, _) in self._good.items():
            application.router.add_get(path, _page(body))
        for path, bad in self._bad.items():
            if bad.body is not None:
                application.router.add_get(path, _page(bad.body))
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self._address = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield {"APP_FETCH_ALLOW": "127.0.0.1", "APP_STORAGE_URL": (self.folder / "files").as_uri()}
        finally:
            await runner.cleanup()

    async def play(self) -> None:
        """Post them all."""
        await self.pool.executemany(
            "insert into app.posts (image_url) values ($1)", [(self._url(path),) for path in (*self._good, *self._bad)]
        )

    async def doomed(self) -> set[int]:
        """Give the jobs of the hostile pictures that are dead for the promised reason."""
        return {job for path, bad in self._bad.items() for job in await self._dead(path, bad.reason)}

    async def prove(self) -> list[str]:
        """Look at every file; compare what came of each picture with what was promised."""
        sentences = [sentence for path in self._good for sentence in await self._what_is_wrong_with(path)]
        for path, bad in self._bad.items():
            if len(await self._dead(path, bad.reason)) != 1:
                sentences.append(f"the hostile picture {path} has no job that is dead because: {bad.reason}")
        files = await self.pool.fetchval("select count(*) from app.post_images")
        self.shown = [
            ("pictures posted", f"{len(self._good)} good, {len(self._bad)} hostile"),
            ("… WebP files made of them, without metadata", f"{files}"),
            ("… hostile ones refused, each with its reason", f"{len(await self.doomed())}"),
        ]
        return sentences

    async def _what_is_wrong_with(self, path: str) -> list[str]:
        size = self._good[path][1]
        wanted = {"full": _fit(size, _LARGEST)} | {f"thumbnail_{box}": _fit(size, box) for box in _SIZES}
        rows = await self.pool.fetch(
            """select i.variant, i.width, i.height, i.bytes, i.url
               from app.posts p join app.post_images i on i.post_id = p.id where p.image_url = $1""",
            self._url(path),
        )
        found = {row["variant"]: (row["width"], row["height"]) for row in rows}
        # One pixel more or less: how half ones are rounded is the library's business.
        if found.keys() != wanted.keys() or any(
            abs(one - other) > 1
            for variant in wanted
            for one, other in zip(found[variant], wanted[variant], strict=True)
        ):
            return [f"the picture {path} has not become {wanted}, but {found}"]
        return [f"{row['url']}: {wrong}" for row in rows for wrong in _look(row)]

    async def _dead(self, path: str, reason: str) -> list[int]:
        rows = await self.pool.fetch(
            """select id from howdah.job_status
               where kind = 'process_image' and state = 'dead' and payload ->> 'image_url' = $1 and strpos(error, $2) > 0""",
            self._url(path),
            reason,
        )
        return [row["id"] for row in rows]

    def _url(self, path: str) -> str:
        return self._address + path if path.startswith("/") else path


def _look(row: asyncpg.Record) -> list[str]:
    body = Path(url2pathname(urlsplit(row["url"]).path)).read_bytes()
    with Image.open(BytesIO(body), formats=["WEBP"]) as picture:
        size, top, bottom = (
            picture.size,
            *(picture.convert("RGB").getpixel((picture.width // 2, at)) for at in (0, -1 + picture.height)),
        )
    wrong = []
    if (len(body), size) != (row["bytes"], (row["width"], row["height"])):
        wrong.append(f"its row says {row['bytes']} bytes, {row['width']} x {row['height']}")
    if metadata := _chunks(body) - _PLAIN:
        wrong.append(f"it still has {', '.join(sorted(metadata))}")
    if min(size) > 1 and not (top[0] > 150 > bottom[0]):
        wrong.append("it is not upright: its upper half is not the bright one")
    return wrong


def _chunks(webp: bytes) -> set[str]:
    found, place = set(), 12
    while place < len(webp):
        found.add(webp[place : place + 4].decode("latin-1"))
        length = int.from_bytes(webp[place + 4 : place + 8], "little")
        place += 8 + length + length % 2
    return found


def _fit(size: tuple[int, int], box: int) -> tuple[int, int]:
    width, height = size
    longest = max(size)
    if longest <= box:
        return size
    return max(1, round(width * box / longest)), max(1, round(height * box / longest))


def _page(body: bytes) -> Callable[[web.Request], web.Response]:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body)

    return answer
