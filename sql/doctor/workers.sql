-- The workers: since when each has been silent, in seconds, and whether that means that it is dead; and who leads.
select w.id, w.name, w.version, w.draining, extract(epoch from clock_timestamp() - w.beat_at)::float8 as silent,
  w.beat_at < clock_timestamp() - w.ttl as dead, l.worker is not null as leads
from howdah.workers w left join howdah.leader l on l.worker = w.id and l.until > clock_timestamp()
order by w.id
