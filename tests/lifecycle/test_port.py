"""What the port tells Prometheus, load balancers and people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.eventually import aeventually
from support.facts import RECORD, end_of, make_runs, runs
from support.jobs import enqueue, enqueue_many
from support.proxy import proxied

from howdah.version import __version__

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.daemon import Daemon

#: Every name of the design's section 6, with the labels that it has there.
NAMES = {
    "howdah_jobs_claimed_total": 'queue="default"',
    "howdah_jobs_finished_total": 'kind="work",outcome="completed",queue="default"',
    "howdah_job_wait_seconds_count": 'queue="default"',
    "howdah_job_run_seconds_count": 'kind="work"',
    "howdah_slots": 'queue="default"',
    "howdah_slots_used": 'queue="default"',
    "howdah_jobs_in_hand": "",
    "howdah_rescued_total": "",
    "howdah_lost_leases_total": "",
    "howdah_claim_seconds_count": "",
    "howdah_ack_seconds_count": "",
    "howdah_ack_batch_size_count": "",
    "howdah_heartbeat_age_seconds": "",
    "howdah_listener_up": "",
    "howdah_wakes_total": "",
    "howdah_polls_total": "",
    "howdah_loop_lag_seconds": "",
    "howdah_draining": "",
    "howdah_worker_info": f'version="{__version__}"',
}


async def test_metrics_have_the_names_that_dashboards_rely_on_and_count_right(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon(
        """
        @handler("work")
        async def work(job: Job) -> None: ...

        @handler("fails", max_attempts=2, backoff=lambda attempt: 0)
        async def fails(job: Job) -> None: raise ValueError

        @handler("cancels")
        async def cancels(job: Job) -> Cancel: return Cancel("no")
        """,
        queues="default:7,mail:3",
    )
    await enqueue_many(connection, *({"kind": "work"} for _ in range(20)))
    for kind in ("fails", "cancels", "work"):
        await end_of(connection, await enqueue(connection, kind))
    status, text = await worker.get("/metrics")
    assert status == 200
    found = await worker.metrics()
    for name, labels in NAMES.items():
        assert (f"{name}{{{labels}}}" if labels else name) in found, name
    assert "howdah_reconnects_total" in text
    assert "howdah_oldest_ready_seconds" in text
    assert "# TYPE howdah_job_run_seconds histogram" in text
    assert 'howdah_job_run_seconds_bucket{kind="work",le="0.001"}' in found
    assert 'howdah_job_run_seconds_bucket{kind="work",le="3600.0"}' in found

    async def counts_agree() -> bool:
        found = await worker.metrics()
        outcomes = {
            ("work", "completed"): 21,
            ("fails", "retried"): 1,
            ("fails", "dead"): 1,
            ("cancels", "cancelled"): 1,
        }
        return all(
            found[f'howdah_jobs_finished_total{{kind="{kind}",outcome="{outcome}",queue="default"}}'] == count
            for (kind, outcome), count in outcomes.items()
        )

    await aeventually(counts_agree)
    found = await worker.metrics()
    assert found['howdah_jobs_claimed_total{queue="default"}'] == 24
    assert found['howdah_job_wait_seconds_count{queue="default"}'] == 24
    assert (found['howdah_slots{queue="default"}'], found['howdah_slots{queue="mail"}']) == (7, 3)
    assert found['howdah_slots_used{queue="default"}'] == 0
    assert (found["howdah_jobs_in_hand"], found["howdah_draining"]) == (0, 0)
    assert 0 <= found["howdah_heartbeat_age_seconds"] < 30


async def test_only_the_leader_counts_the_queues(daemon: StartDaemon, connection: asyncpg.Connection) -> None:
    await enqueue_many(connection, *({"kind": "strange"} for _ in range(3)))
    workers = [await daemon(), await daemon()]
    name = 'howdah_jobs{queue="default",state="ready"}'
    leaders = await aeventually(lambda: those_that_tell(workers, name), timeout=20)
    assert len(leaders) == 1
    assert await leaders[0].metric(name) == 3
    assert await leaders[0].metric('howdah_oldest_ready_seconds{queue="default"}') > 0


async def test_health_tells_of_the_process_and_readiness_of_the_database_and_the_drain(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database
) -> None:
    await make_runs(connection)
    async with proxied(database.url) as wire:
        worker = await daemon(
            RECORD.replace('os.environ["HOWDAH_DATABASE_URL"]', repr(database.url)), url=wire.url, lease_ttl=2
        )
        assert (await worker.get("/healthz"))[0] == 200
        wire.refusing = True
        wire.cut()
        body = await aeventually(lambda: not_ready(worker))
        assert "the database does not answer" in body["reasons"]
        assert (await worker.get("/healthz"))[0] == 200
        status, text = await worker.get("/health/queue")
        assert (status, json.loads(text)["healthy"]) == (503, False)
        wire.refusing = False
        await aeventually(lambda: is_ready(worker))

        await enqueue(connection, "record", {"seconds": 1.5})
        await aeventually(lambda: runs(connection, "job"))
        worker.terminate()
        body = await aeventually(lambda: not_ready(worker))
        assert body["reasons"] == ["draining"]
        assert (await worker.get("/healthz"))[0] == 200
        assert await worker.metric("howdah_draining") == 1
        assert await worker.wait() == 0


async def test_queue_health_and_stats_tell_what_is_in_the_database(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    worker = await daemon()
    await enqueue_many(connection, *({"kind": "strange"} for _ in range(3)))
    status, text = await worker.get("/health/queue")
    assert (status, json.loads(text)) == (200, {"healthy": True, "stuck_jobs": 0, "pending_jobs": 3})
    status, text = await worker.get("/stats")
    [row] = json.loads(text)["jobs"]
    assert (status, row["queue"], row["kind"], row["state"], row["jobs"]) == (200, "default", "strange", "ready", 3)

    # Leased by a worker that nobody has seen for long.
    await connection.execute(
        """update howdah.jobs set lease = 1, leased_by = 4711, claimed_at = clock_timestamp()
        where id = (select min(id) from howdah.jobs)"""
    )
    status, text = await worker.get("/health/queue")
    assert (status, json.loads(text)) == (503, {"healthy": False, "stuck_jobs": 1, "pending_jobs": 2})
    assert (await worker.get("/nothing"))[0] == 404


@pytest.mark.fault(
    "Security", "the port open to others, no token or a wrong one", "health and metrics answer, figures of jobs do not"
)
async def test_on_an_open_address_stats_need_the_token_and_health_and_metrics_do_not(daemon: StartDaemon) -> None:
    worker = await daemon(http_host="0.0.0.0", admin_token="s3cret")
    worker.address = worker.address.replace("0.0.0.0", "127.0.0.1")
    for path in ("/metrics", "/healthz", "/readyz", "/health/queue"):
        assert (await worker.get(path))[0] == 200, path
    assert (await worker.get("/stats"))[0] == 401
    assert (await worker.get("/stats", Authorization="Bearer wrong"))[0] == 401
    assert (await worker.get("/stats", Authorization="Bearer s3cret"))[0] == 200
    assert "s3cret" not in worker.output()


async def those_that_tell(workers: list[Daemon], name: str) -> list[Daemon]:
    return [worker for worker in workers if name in await worker.metrics()]


async def not_ready(worker: Daemon) -> dict[str, list[str]] | None:
    status, text = await worker.get("/readyz")
    return json.loads(text) if status == 503 else None


async def is_ready(worker: Daemon) -> bool:
    return (await worker.get("/readyz"))[0] == 200
