-- The queues that are paused: by whom, and for how many seconds.
select q.name, q.paused_by, extract(epoch from clock_timestamp() - q.paused_at)::float8 as paused
from howdah.queues q where q.paused_at is not null order by q.paused_at
