"""BullMQ on PostgreSQL."""

from peers.peer import Peer

PEER = Peer(
    name="bullmq",
    requires=("bullmq@6.7.0", "pg@8.23.1"),
    node=True,
    best={"concurrency": 50, "pool": 20},
    bounded={"concurrency": 100, "pool": 20},
    finished="select not exists (select from bullmq.job where state not in ('completed', 'failed'))",
    slow=10_000,
    note="50 at once, 20 connections; what is done is removed",
)
