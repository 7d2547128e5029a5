-- Who has the slots: jobs that have run for a second or more (only these have their start on record), by queue and kind, among the first of each lane.
select f.queue, f.kind, count(*) as jobs, extract(epoch from clock_timestamp() - min(f.started_at))::float8 as longest
from howdah.fronts() f where f.lease is not null and f.started_at is not null group by f.queue, f.kind order by count(*) desc, f.queue, f.kind
