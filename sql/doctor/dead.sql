-- Jobs that died in the last day, by kind: how many, how many of them brought down workers, and the newest of them.
select h.kind, count(*) as jobs, count(*) filter (where h.crashes > 0) as poison,
  (array_agg(h.id order by (h.crashes > 0)::int desc, h.finished_at desc))[1] as newest
from howdah.job_status h where h.state = 'dead' and h.finished_at > clock_timestamp() - interval '1 day'
group by h.kind order by count(*) desc, h.kind limit 20
