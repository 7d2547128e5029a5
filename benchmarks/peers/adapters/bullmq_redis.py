"""BullMQ on Redis, with the append-only file written once a second: what a crash may lose is a second of jobs."""

from peers.peer import Peer

PEER = Peer(
    name="bullmq-redis",
    requires=("bullmq@6.7.0", "ioredis@6.0.0"),
    node=True,
    redis=True,
    best={"concurrency": 200},
    bounded={"concurrency": 100},
    finished=None,
    note="Redis, its log on disk once a second: less durable than all others; until the last handler's end",
)
