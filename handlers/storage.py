"""Where files are kept: a directory, or a bucket of S3's protocol, as APP_STORAGE_URL says.

Keys are made by the application, never taken from what users say; a file is put whole or not at all.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, S3Store

from handlers.settings import settings
from howdah import lifespan
from howdah.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_VARIABLE = "APP_STORAGE_URL"
_TIMEOUT = timedelta(seconds=30)  # of one request; the library repeats what may be repeated, for as long again


class StorageError(Exception):
    """The storage cannot be reached, or does not do what it is asked; worth another attempt."""


class FileTooLargeError(Exception):
    """A stored file is larger than whoever reads it can take."""


@lifespan
async def storage() -> AsyncIterator[Storage]:
    """Open the worker's storage. A directory is made if it is missing; a bucket is asked for at its first use."""
    yield Storage(settings().storage_url)


class Storage:
    """Files by their keys: `job.resources["storage"]`. All calls raise StorageError when the storage fails."""

    def __init__(self, url: str) -> None:
        self._store, self._base = _open(url)

    def url(self, key: str) -> str:
        """Give the address of what is or would be stored under a key, which names the directory or the bucket, too."""
        return self._base + quote(key)

    async def put(self, key: str, body: bytes, content_type: str) -> None:
        """Store a file, in the place of what was there. Nobody ever sees half of it."""
        # A directory knows no types: whoever serves it goes by the key's ending.
        kind = None if isinstance(self._store, LocalStore) else {"Content-Type": content_type}
        with _plainly(self.url(key)):
            await self._store.put_async(key, body, attributes=kind, use_multipart=False)

    async def get(self, key: str, *, limit: int) -> bytes:
        """Give a file. Raises FileNotFoundError, and FileTooLargeError before anything is read."""
        with _plainly(self.url(key)):
            found = await self._store.get_async(key)
            if found.meta["size"] > limit:
                raise FileTooLargeError(
                    f"{self.url(key)} has {found.meta['size']:,} bytes; at most {limit:,} can be taken"
                )
            return bytes(await found.bytes_async())

    async def delete(self, key: str) -> None:
        """Delete a file; one that is missing is fine."""
        # A bucket is silent about a missing object; where it says "not found", it is the bucket that is not there.
        missing_is_fine = isinstance(self._store, LocalStore)
        with suppress(FileNotFoundError) if missing_is_fine else nullcontext(), _plainly(self.url(key)):
            await self._store.delete_async(key)


@contextmanager
def _plainly(url: str) -> Iterator[None]:
    """Say in a line what the library says in twenty, and one thing in one way whatever the storage."""
    try:
        yield
    except (FileNotFoundError, NotFoundError):
        raise FileNotFoundError(f"nothing is stored as {url}") from None
    except (BaseError, OSError) as error:
        raise StorageError(f"{url}: {str(error).partition(chr(10))[0]}") from None


def _open(url: str) -> tuple[LocalStore | S3Store, str]:
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ConfigError(_VARIABLE, f"{url!r}: nothing may stand behind ? or #")
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return _directory(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        return _bucket(parts.netloc, unquote(parts.path).strip("/"))
    raise ConfigError(_VARIABLE, f"{url!r} is neither file:///directory nor s3://bucket/prefix")


def _directory(path: Path) -> tuple[LocalStore, str]:
    try:
        path.mkdir(parents=True, exist_ok=True)
        store = LocalStore(path, automatic_cleanup=True)
    except (OSError, ValueError) as error:
        raise ConfigError(_VARIABLE, f"{path}: {error}") from None
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(_VARIABLE, f"{path} cannot be written by this user")
    return store, path.absolute().as_uri().rstrip("/") + "/"


def _bucket(bucket: str, prefix: str) -> tuple[S3Store, str]:
    """Address and credentials are those of the usual variables: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, …."""
    endpoint = (
        os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")
    )
    try:
        store = S3Store(
            bucket,
            prefix=prefix or None,
            config={"endpoint": endpoint} if endpoint else None,
            # Whoever writes http:// there has a server of their own, and no certificate for it.
            client_options={"timeout": _TIMEOUT, "allow_http": bool(endpoint and endpoint.startswith("http://"))},
            retry_config={"max_retries": 3, "retry_timeout": _TIMEOUT},
        )
    except Exception as error:  # obstore's own errors are no part of its promises
        raise ConfigError(_VARIABLE, f"s3://{bucket}: {error}") from None
    return store, f"s3://{bucket}/{quote(prefix)}/" if prefix else f"s3://{bucket}/"
