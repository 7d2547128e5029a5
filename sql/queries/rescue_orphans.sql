-- Gives leases whose worker has no row any more a row to be found by: one that died long ago, so that the next rescue takes them.
-- Reads the whole table; run seldom. Happens only if a worker's row was deleted by hand, or a claim's reply came after its worker left.
insert into howdah.workers (id, name, version, ttl, queues, kinds, started_at, beat_at)
overriding system value
select distinct j.leased_by, 'unknown', '0', interval '0', '{}'::text[], '{}'::text[], 'epoch'::timestamptz, 'epoch'::timestamptz
from howdah.jobs j
where j.lease is not null and not exists (select from howdah.workers w where w.id = j.leased_by)
  and j.claimed_at < clock_timestamp() - interval '1 minute'
on conflict (id) do nothing
returning id
