"""Programs in JavaScript: one that enqueues in its own transaction, and a worker beside the daemon, under the same fence.

`./dev javascript` installs what they need and runs these.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.daemon import clean_environment
from support.eventually import aeventually
from support.jobs import enqueue, enqueue_many, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database

    StartNode = Callable[[], "Node"]

MODULES = os.environ.get("HOWDAH_NODE_MODULES")
pytestmark = pytest.mark.skipif(MODULES is None, reason="needs node and the package pg: ./dev javascript")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "javascript"

#: A kind of the example's, and one that takes its time.
SLOW = """
  async sleep(job) {
    await new Promise((resolve) => setTimeout(resolve, job.payload.ms));
    return { by: worker };
  },
"""


class Node:
    """One run of a program, from a folder that sees the modules."""

    def __init__(self, folder: Path, text: str, url: str) -> None:
        folder.mkdir()
        (folder / "node_modules").symlink_to(Path(MODULES or ""))
        (folder / "program.mjs").write_text(text, encoding="utf-8")
        self.process = subprocess.Popen(
            ["node", "program.mjs"],
            cwd=folder,
            env=clean_environment(DATABASE_URL=url),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def worker(database: Database, tmp_path: Path) -> Iterator[StartNode]:
    """Start a worker: the example, with a slow kind besides."""
    nodes: list[Node] = []
    text = (EXAMPLES / "worker.mjs").read_text(encoding="utf-8")
    text = text.replace("const handlers = {\n", "const handlers = {" + SLOW, 1)

    def start() -> Node:
        nodes.append(Node(tmp_path / f"node{len(nodes)}", text, database.url))
        return nodes[-1]

    yield start
    for node in nodes:
        with suppress(ProcessLookupError):
            node.process.kill()
        node.process.communicate()


async def ended(connection: asyncpg.Connection, state: str = "completed") -> int:
    return int(await connection.fetchval("select count(*) from howdah.job_history where state = $1", state))


async def test_what_is_rolled_back_never_runs_and_what_is_committed_does(
    connection: asyncpg.Connection, database: Database, worker: StartNode, tmp_path: Path
) -> None:
    text = (EXAMPLES / "enqueue.mjs").read_text(encoding="utf-8")
    said, _ = Node(tmp_path / "enqueue", text, database.url).process.communicate(timeout=20)
    ids = json.loads(said)
    worker()

    async def is_done() -> bool:
        return await ended(connection) == 1

    await aeventually(is_done)
    row = await status(connection, int(ids["done"]))
    assert row["result"] == {"text": "HELLO"}
    assert await connection.fetch("select from howdah.job_status where id = $1", int(ids["undone"])) == []


async def test_a_javascript_worker_takes_its_kinds_and_the_daemon_its_own(
    connection: asyncpg.Connection, worker: StartNode, daemon: StartDaemon
) -> None:
    node = worker()
    await daemon()
    await enqueue_many(
        connection,
        *[{"kind": kind, "payload": {"text": "abc"}} for _ in range(200) for kind in ("work", "shout")],
    )

    async def are_done() -> bool:
        return await ended(connection) == 400

    await aeventually(are_done, 30)
    rows = await connection.fetch(
        "select kind, result, count(*) as jobs, count(distinct leased_by) as workers from howdah.job_history group by 1, 2 order by 1"
    )
    assert [(row["kind"], row["result"], row["jobs"], row["workers"]) for row in rows] == [
        ("shout", {"text": "ABC"}, 200, 1),
        ("work", {"echo": {"text": "abc"}}, 200, 1),
    ]
    # It stops as it should.
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(timeout=10) == 0


async def test_a_failure_is_told_with_its_type_and_retried(connection: asyncpg.Connection, worker: StartNode) -> None:
    worker()
    job = await enqueue(connection, "shout", {}, max_attempts=1)
    broken = await enqueue(connection, "sleep", {"ms": "x"}, max_attempts=1)
    other = await enqueue(connection, "shout", {"text": {"toString": 1}}, max_attempts=2)

    async def are_done() -> bool:
        return (await status(connection, other))["state"] == "retrying" and await ended(connection) == 2

    await aeventually(are_done)
    assert (await status(connection, job))["result"] == {"text": "UNDEFINED"}
    assert (await status(connection, broken))["state"] == "completed"
    error = (await status(connection, other))["errors"][0]
    assert (error["type"], error["attempt"]) == ("TypeError", 1)
    assert "Cannot convert object to primitive value" in error["message"]


async def test_a_killed_worker_loses_nothing(
    connection: asyncpg.Connection, worker: StartNode, daemon: StartDaemon
) -> None:
    """The daemon has no such kind, but it does the rescue."""
    await daemon(lease_ttl=1)
    first = worker()
    await enqueue_many(connection, *[{"kind": "sleep", "payload": {"ms": 100}} for _ in range(30)])

    async def some_run() -> bool:
        return await connection.fetchval("select count(*) from howdah.jobs where state = 'running'") > 5

    await aeventually(some_run)
    first.process.kill()
    await connection.execute("update howdah.workers set ttl = '1 s' where version = 'sql'")
    worker()

    async def are_done() -> bool:
        return await ended(connection) == 30

    await aeventually(are_done, 30)


async def test_a_frozen_worker_that_wakes_late_is_refused(
    connection: asyncpg.Connection, worker: StartNode, daemon: StartDaemon
) -> None:
    await daemon(lease_ttl=1)
    frozen = worker()
    job = await enqueue(connection, "sleep", {"ms": 300})

    async def runs() -> bool:
        return (await status(connection, job))["state"] == "running"

    await aeventually(runs)
    frozen.process.send_signal(signal.SIGSTOP)
    await connection.execute("update howdah.workers set ttl = '1 s' where version = 'sql'")
    other = worker()

    async def is_done() -> bool:
        return (await status(connection, job))["state"] == "completed"

    await aeventually(is_done, 30)
    before = await status(connection, job)
    assert str(other.process.pid) in before["result"]["by"]
    frozen.process.send_signal(signal.SIGCONT)
    # It goes on, learns that the job is not its any more, and works on as before.
    other.process.send_signal(signal.SIGTERM)
    other.process.wait(timeout=10)
    late = await enqueue(connection, "sleep", {"ms": 0})

    async def works_on() -> bool:
        return (await status(connection, late))["state"] == "completed"

    await aeventually(works_on, 20)
    assert await connection.fetch("select * from howdah.job_status where id = $1", job) == [before]
    assert str(frozen.process.pid) in (await status(connection, late))["result"]["by"]


def test_the_worker_has_about_forty_lines() -> None:
    lines = (EXAMPLES / "worker.mjs").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip() and not line.strip().startswith("//")]) <= 45
