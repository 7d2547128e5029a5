-- Live jobs by queue and state, with the age in seconds of the oldest ready one. Reads the whole table.
select j.queue, j.state, count(*) as jobs, extract(epoch from clock_timestamp() - min(j.ready_at))::float8 as oldest
from howdah.jobs j group by j.queue, j.state
