-- How many of `found`, the jobs that find_jobs finds, there are by $10 (error, kind, queue, state or worker), with when the first
-- and the last were touched (by error: failed), and the newest one as an example. Reads all that is found.
select g.*, w.name as worker_name, clock_timestamp() as asked_at
from (
  select case $10 when 'error' then fingerprint when 'kind' then kind when 'queue' then queue when 'state' then state
                  else coalesce(worker::text, '') end as name,
    count(*) as jobs, array_agg(distinct kind order by kind) as kinds, array_agg(distinct state order by state) as states,
    min(touched_at) as first_at, max(touched_at) as last_at, max(id) as example,
    case when $10 = 'error' then max(error_type) end as error_type, case when $10 = 'error' then max(signature) end as signature
  from (select found.*, case when $10 = 'error' then (errors -> -1 ->> 'at')::timestamptz else updated_at end as touched_at from found) found
  where $10 <> 'error' or error is not null
  group by 1) g
left join howdah.workers w on $10 = 'worker' and w.id::text = g.name
order by g.jobs desc, g.last_at desc, g.name
