-- The limits, with the keys that jobs hold under each, the jobs that hold them, and those that wait in their lines: at most 10,000 are counted, which
-- `waiting_more` tells.
with held as materialized (
  select (howdah.limit_for(h.key)).name, count(distinct h.key) as keys, count(*) as running from howdah.holds h group by 1),
waiting as materialized (
  select (howdah.limit_for(w.gate)).name, sum(w.jobs)::bigint as jobs
  from (select j.gate, count(*) as jobs from (
    select j.gate from howdah.jobs j where j.gate is not null and j.due_at is null and not j.suspect limit 10000) j group by j.gate) w group by 1),
seen as materialized (select coalesce(sum(w.jobs), 0) >= 10000 as cut from waiting w)
select l.name, l.concurrency, l.rate, l.burst, coalesce(h.keys, 0) as keys, coalesce(h.running, 0) as running, coalesce(w.jobs, 0) as waiting, s.cut as waiting_more
from howdah.limits l left join held h on h.name = l.name left join waiting w on w.name = l.name cross join seen s
order by l.name
