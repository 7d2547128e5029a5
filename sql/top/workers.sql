-- The workers: seconds since the last beat and whether that means dead, how many jobs each holds among the first of the lanes, and
-- who leads.
select w.id, w.name, w.version, w.draining, w.sleeps, extract(epoch from clock_timestamp() - w.beat_at)::float8 as silent,
  w.beat_at < clock_timestamp() - w.ttl as dead, w.queues, cardinality(w.kinds) as kinds, l.worker is not null as leads,
  extract(epoch from clock_timestamp() - w.started_at)::float8 as age
from howdah.workers w left join howdah.leader l on l.worker = w.id and l.until > clock_timestamp()
order by w.id
