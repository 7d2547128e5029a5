"""The storage: a directory, and a bucket behind a real server of S3's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from support.s3 import S3, s3

from handlers.storage import FileTooLargeError, Storage, StorageError
from howdah.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = "posts/7/a b.webp"


@pytest.fixture
async def bucket(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3]:
    async with s3() as bucket:
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        yield bucket


@pytest.fixture(params=["directory", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, bucket: S3) -> Storage:  # noqa: ARG001 - it must be there
    return Storage(f"{(tmp_path / 'new' / 'a dir').as_uri()}" if request.param == "directory" else "s3://files/images")


async def test_what_was_put_is_given_until_it_is_deleted(storage: Storage) -> None:
    await storage.put(KEY, b"old and longer", "image/webp")
    await storage.put(KEY, b"new", "image/webp")
    assert await storage.get(KEY, limit=3) == b"new"
    await storage.delete(KEY)
    with pytest.raises(FileNotFoundError):
        await storage.get(KEY, limit=3)
    await storage.delete(KEY)


async def test_a_file_above_the_limit_is_not_read(storage: Storage) -> None:
    await storage.put(KEY, b"1234", "image/webp")
    with pytest.raises(FileTooLargeError, match="has 4 bytes; at most 3 can be taken"):
        await storage.get(KEY, limit=3)


async def test_a_key_cannot_lead_out_of_the_storage(storage: Storage) -> None:
    with pytest.raises(ValueError, match="illegal"):
        await storage.put("../outside", b"", "image/webp")


async def test_the_url_of_a_file_leads_to_it(tmp_path: Path) -> None:
    storage = Storage(tmp_path.as_uri())
    await storage.put(KEY, b"here", "image/webp")
    assert Path(url2pathname(urlsplit(storage.url(KEY)).path)).read_bytes() == b"here"  # noqa: ASYNC240 - three letters
    assert files_of(tmp_path) == [tmp_path / KEY]  # and no draft beside it
    await storage.delete(KEY)
    assert files_of(tmp_path) == []


async def test_an_object_lies_in_its_bucket_under_its_prefix_with_its_type(bucket: S3) -> None:
    storage = Storage("s3://files/images")
    bucket.failures = 2  # the library's own repeats
    await storage.put(KEY, b"here", "image/webp")
    assert bucket.objects == {f"files/images/{KEY}": (b"here", "image/webp")}
    assert storage.url(KEY) == "s3://files/images/posts/7/a%20b.webp"
    assert Storage("s3://files").url("a") == "s3://files/a"


async def test_credentials_that_are_wrong_say_so(bucket: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    with pytest.raises(StorageError, match=r"s3://files/posts/7/a%20b\.webp: .*403"):
        await Storage("s3://files").put(KEY, b"here", "image/webp")
    assert bucket.objects == {}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/srv/files",
        "file://host/srv",
        "s3://",
        "http://x/",
        "file:///srv?a=b",
        "file:///dev/null/x",
    ],
)
def test_an_address_that_leads_to_no_storage_names_its_variable(url: str) -> None:
    with pytest.raises(ConfigError, match="APP_STORAGE_URL"):
        Storage(url)


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
