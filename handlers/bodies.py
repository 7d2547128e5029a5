"""The body of an answer, piece by piece: no more of it is ever held than the limit, as sent or as unpacked."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from handlers.fetch_errors import FetchFailedError, HopelessFetchError, TooLargeError

if TYPE_CHECKING:
    from aiohttp import ClientResponse

_PIECE = 64 * 1024
_EITHER_HEADER = 32 + zlib.MAX_WBITS  # gzip or zlib, whichever it is


async def read_body(response: ClientResponse, limit: int) -> bytes:
    """Give the whole body. Raises TooLargeError as soon as there are more than `limit` bytes.

    The session must have auto_decompress off: unpacked by itself, one network packet may become a thousand times as much.
    """
    if response.content_length is not None and response.content_length > limit:
        raise _too_large(response, limit)
    unpack = _unpacker(response)
    body = bytearray()
    async for piece in response.content.iter_chunked(_PIECE):
        body += unpack.take(piece, limit + 1 - len(body))
        if len(body) > limit:
            raise _too_large(response, limit)
    if not unpack.complete:
        raise FetchFailedError(response.url, "breaks off in the middle of what is packed")
    return bytes(body)


def _too_large(response: ClientResponse, limit: int) -> TooLargeError:
    return TooLargeError(response.url, f"is too large: more than {limit:,} bytes")


def _unpacker(response: ClientResponse) -> _Plain | _Packed:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in {"", "identity"}:
        return _Plain()
    if encoding in {"gzip", "x-gzip", "deflate"}:
        return _Packed(response)
    raise HopelessFetchError(response.url, f"is packed as {encoding[:40]!r}, which was not asked for")


class _Plain:
    """Nothing is packed."""

    complete = True

    def take(self, piece: bytes, _room: int) -> bytes:
        return piece


class _Packed:
    """Unpacks gzip or zlib, never more than there is room for."""

    def __init__(self, response: ClientResponse) -> None:
        self._response = response
        self._stream = zlib.decompressobj(_EITHER_HEADER)

    @property
    def complete(self) -> bool:
        return self._stream.eof

    def take(self, piece: bytes, room: int) -> bytes:
        try:
            return self._stream.decompress(self._stream.unconsumed_tail + piece, room)
        except zlib.error as error:
            raise HopelessFetchError(self._response.url, f"is badly packed: {error}") from None
