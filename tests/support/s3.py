"""A bucket on loopback that speaks as much of S3's protocol as a client needs to put, get, look at and delete objects."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_MOMENT = "Sun, 22 Nov 2026 08:00:00 GMT"


@dataclass
class S3:
    """Objects by bucket/key, each with its type. `failures` requests are answered with 503 before the next that is served; `broken`: deletes fail."""

    address: str = ""
    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    failures: int = 0
    broken: bool = False

    def environment(self) -> dict[str, str]:
        """The variables that lead a client here."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key-of-tests",
            "AWS_SECRET_ACCESS_KEY": "secret-of-tests",
        }

    async def serve(self, request: web.Request) -> web.Response:
        name = request.path.lstrip("/")
        if self.failures:
            self.failures -= 1
            return web.Response(status=503)
        if "Credential=key-of-tests/" not in request.headers.get("Authorization", ""):
            return _refusal(403, "AccessDenied", name)
        if request.method == "PUT":
            self.objects[name] = (await request.read(), request.content_type)
            return web.Response(headers={"ETag": '"1"'})
        if request.method == "POST" and "delete" in request.query:
            return self._delete(name, ET.fromstring(await request.text()))  # noqa: S314 - the same
        if name not in self.objects:
            return _refusal(404, "NoSuchKey", name)
        body, kind = self.objects[name]
        return web.Response(body=body, content_type=kind, headers={"ETag": '"1"', "Last-Modified": _MOMENT})

    def _delete(self, bucket: str, asked: ET.Element) -> web.Response:
        if self.broken:
            return _refusal(403, "AccessDenied", bucket)
        keys = [str(node.text) for node in asked.iter() if node.tag.rpartition("}")[2] == "Key"]
        for key in keys:
            self.objects.pop(f"{bucket}/{key}", None)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return web.Response(text=f"<DeleteResult>{deleted}</DeleteResult>", content_type="application/xml")


def _refusal(status: int, code: str, name: str) -> web.Response:
    text = f"<Error><Code>{code}</Code><Message>{code}</Message><Resource>/{escape(name)}</Resource></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


@asynccontextmanager
async def s3() -> AsyncIterator[S3]:
    """Run the server; every bucket exists."""
    bucket = S3()
    application = web.Application(client_max_size=64 * 1024 * 1024)
    application.router.add_route("*", "/{path:.*}", bucket.serve)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    bucket.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield bucket
    finally:
        await runner.cleanup()
