"""Enqueue over psycopg 3, in the transaction of the connection that is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.rows import tuple_row

from howdah.newjob import Enqueued, arguments_json, refusals
from howdah.queries import SQL

if TYPE_CHECKING:
    from typing import Unpack

    from psycopg import AsyncConnection, Connection

    from howdah.newjob import JobOptions

_ENQUEUE = SQL["enqueue"].replace("$1::text", "%s::text")


def enqueue(connection: Connection[Any], kind: str, payload: Any = None, **options: Unpack[JobOptions]) -> Enqueued:
    """Enqueue one job on a connection; see howdah.enqueue."""
    arguments = arguments_json({"kind": kind, "payload": payload, **options})
    with refusals(), connection.cursor(row_factory=tuple_row) as cursor:
        return Enqueued(*cursor.execute(_ENQUEUE, [arguments]).fetchall()[0])


async def enqueue_async(
    connection: AsyncConnection[Any], kind: str, payload: Any = None, **options: Unpack[JobOptions]
) -> Enqueued:
    """Do the same on an asynchronous connection."""
    arguments = arguments_json({"kind": kind, "payload": payload, **options})
    with refusals():
        async with connection.cursor(row_factory=tuple_row) as cursor:
            return Enqueued(*(await (await cursor.execute(_ENQUEUE, [arguments])).fetchall())[0])
