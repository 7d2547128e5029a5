"""Read the files that documents are made from: out of our own storage, or from the web through the guarded client."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from handlers.fetching import HopelessFetchError
from handlers.filetypes import UnreadableError
from handlers.settings import settings
from handlers.storage import FileTooLargeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from handlers.fetching import Fetcher
    from handlers.storage import Storage


class Source(NamedTuple):
    """A file, and of which type its server says that it is; our own storage says nothing."""

    body: bytes
    content_type: str


async def read_source(resources: Mapping[str, object], url: str) -> Source:
    """Read a file of at most APP_FETCH_MAX_BYTES.

    Raises UnreadableError when it will never be there, StorageError and FetchFailedError when it may be another time.
    """
    storage: Storage = resources["storage"]  # type: ignore[assignment]
    fetcher: Fetcher = resources["fetcher"]  # type: ignore[assignment]
    ours = storage.url("")
    try:
        if url.startswith(ours):
            return Source(await storage.get(_key(url, ours), limit=settings().fetch_max_bytes), "")
        if url.startswith(("http://", "https://")):
            fetched = await fetcher.get(url)
            return Source(fetched.body, fetched.content_type)
    except (FileNotFoundError, FileTooLargeError, HopelessFetchError) as error:
        raise UnreadableError(str(error)) from None
    raise UnreadableError(f"{url[:200]} is neither in our storage nor an address of the web")


def _key(url: str, base: str) -> str:
    key = unquote(url.removeprefix(base))
    if not key or any(part in {"", ".", ".."} for part in key.split("/")):
        raise UnreadableError(f"{url[:200]} names no file of our storage")
    return key
