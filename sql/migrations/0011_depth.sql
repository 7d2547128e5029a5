-- How much lies where, without reading it all: what the gauges, the health of the queue and `howdah doctor` ask.

-- The lanes that hold anything: a lane is the jobs of one queue and one priority in the claim index, in the order of
-- claims. One descent of the index for each lane, however many jobs lie in it. A rank is 10 - priority.
create function howdah.lanes() returns table (queue text, rank int)
language sql stable security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off as $$
with recursive lane as (
  (select j.queue, 10 - j.priority as rank from howdah.jobs j where j.due_at is null and not j.suspect and j.gate is null
   order by j.queue, (10 - j.priority), j.id limit 1)
  union all
  select next.* from lane cross join lateral (
    select j.queue, 10 - j.priority as rank from howdah.jobs j
    where j.due_at is null and not j.suspect and j.gate is null and (j.queue, (10 - j.priority)) > (lane.queue, lane.rank)
    order by j.queue, (10 - j.priority), j.id limit 1) next)
select l.queue, l.rank from lane l $$;

-- The jobs that stand first in the lanes: at most `count` of all lanes together, but 100 of each. Jobs in hand stand before those
-- that wait, unless no worker takes what stands before them. `cut`: the last one, and its lane may have more. Suspects have no lane
-- and come last. The row comparison, and no equality: with the rank pinned the primary key looks as good to the planner.
create function howdah.fronts(count int default 5000)
returns table (queue text, rank int, cut boolean, id bigint, kind text, ready_at timestamptz, lease bigint, leased_by bigint,
  claimed_at timestamptz, started_at timestamptz, timeout interval, suspect boolean)
language sql stable security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off as $$
with lane as materialized (select l.queue, l.rank from howdah.lanes() l),
room as materialized (select greatest(fronts.count / greatest(count(*), 1), 100) as room from lane)
select lane.queue, lane.rank, first.place = (select room from room), first.id, first.kind, first.ready_at, first.lease, first.leased_by,
  first.claimed_at, first.started_at, first.timeout, false
from lane cross join lateral (
  select row_number() over () as place, j.* from (
    select j.id, j.kind, j.ready_at, j.lease, j.leased_by, j.claimed_at, j.started_at, j.timeout from howdah.jobs j
    where j.queue = lane.queue and j.due_at is null and not j.suspect and j.gate is null
      and ((10 - j.priority), j.id) > (lane.rank, 0) and (10 - j.priority) <= lane.rank
    order by (10 - j.priority), j.id
    limit (select room from room)) j) first
union all
(select j.queue, 10 - j.priority, false, j.id, j.kind, j.ready_at, j.lease, j.leased_by, j.claimed_at, j.started_at, j.timeout, true
 from howdah.jobs j where j.due_at is null and j.suspect order by j.queue, (10 - j.priority), j.id limit fronts.count) $$;

-- Live jobs by queue and state, and the age in seconds of the oldest ready one, at a price that does not grow with the table.
-- Exact while the lanes hold less than `count` jobs together, and while less than that are not due. Of more, the jobs are estimated
-- from `pages` pages at equal distances; the running ones and the oldest are then
-- those among the first of each lane, unless all of these are running.
-- Each page is read by its place, in a subquery of its own (`offset 0`): as a join the planner would read the table.
create function howdah.depth(count int default 5000, pages int default 500)
returns table (queue text, state text, jobs bigint, exact boolean, oldest float8)
language sql stable security definer set search_path = pg_catalog, howdah, pg_temp set jit = off set enable_seqscan = off as $$
with front as materialized (
  select f.queue, case when f.lease is null then 'ready' else 'running' end as state, f.ready_at, f.cut from howdah.fronts(depth.count) f),
later as materialized (
  (select j.queue, j.state from howdah.jobs j where j.due_at is not null order by j.due_at limit depth.count)
  union all
  (select j.queue, j.state from howdah.jobs j where j.due_at is null and not j.suspect and j.gate is not null limit depth.count)),
counted as (
  select f.queue, f.state, count(*) as jobs, extract(epoch from clock_timestamp() - min(f.ready_at))::float8 as oldest from front f group by 1, 2
  union all
  select l.queue, l.state, count(*), null from later l group by 1, 2),
cut as materialized (select f.queue, bool_and(f.state = 'running') as all_held from front f group by f.queue having bool_or(f.cut)),
late as materialized (select count(*) >= depth.count as cut from later),
page as materialized (
  select format('(%s,0)', p)::tid as first, format('(%s,0)', p + 1)::tid as past, count(*) over () as sampled, size.pages
  from (select pg_relation_size('howdah.jobs') / current_setting('block_size')::int as pages) size
  cross join lateral generate_series(0, size.pages - 1, greatest(size.pages / depth.pages, 1)) p
  where exists (select from cut) or (select late.cut from late)),
sample as (
  select one.queue, one.state, round(count(*) * min(page.pages)::numeric / min(page.sampled))::bigint as jobs, min(page.pages) = min(page.sampled) as exact
  from page cross join lateral (
    select j.queue, j.state, j.due_at from howdah.jobs j where j.ctid >= page.first and j.ctid < page.past offset 0) one
  where (one.state = 'ready' and one.queue in (select cut.queue from cut))
    or (one.state = 'running' and one.queue in (select cut.queue from cut where cut.all_held)) or ((one.due_at is not null or one.state = 'waiting') and (select late.cut from late))
  group by 1, 2)
select queue, state, greatest(c.jobs, s.jobs), coalesce(s.exact, true), case when c.oldest is not null then greatest(c.oldest, 0) end
from counted c full join sample s using (queue, state) $$;
