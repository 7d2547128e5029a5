-- Whether nothing is left that a worker of queues $1 and kinds $2 could still run without waiting for a future time: no ready job, no
-- ripe event, and nothing that waits for what has ended already, which the next howdah.settle lets go.
select not exists (select from howdah.jobs j where j.queue = any ($1) and j.kind = any ($2)
    and (j.due_at is null or j.due_at <= clock_timestamp()))
  and not exists (select from howdah.events e where e.kind = any ($2) and e.due_at <= clock_timestamp())
  and not exists (select from howdah.dependencies d where d.outcome is not null or not exists (select from howdah.jobs j where j.id = d.depends_on))
  and not exists (select from howdah.batches b where not exists (select from howdah.jobs j where j.batch = b.id)) as idle
