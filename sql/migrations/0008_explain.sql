-- Why a job is not running, in a sentence or two, and what would change that.

-- A length of time for people: 850 ms, 12 s, 3 min, 5 h, 2 days.
create function howdah.humane(length interval) returns text language sql immutable parallel safe as $$
select case
  when s < 1     then format('%s ms', round(s * 1000))
  when s < 120   then format('%s s', round(s))
  when s < 7200  then format('%s min', round(s / 60))
  when s < 172800 then format('%s h', round(s / 3600))
  else format('%s days', round(s / 86400)) end
from (select abs(extract(epoch from length)) as s) one $$;

-- The last error of a list, in a line.
create function howdah.last_error(errors jsonb) returns text language sql immutable parallel safe as $$
select coalesce(nullif(concat_ws(': ', errors -> -1 ->> 'type', left(split_part(errors -> -1 ->> 'message', E'\n', 1), 200)), ''), 'no error on record') $$;

create function howdah.explain(job_id bigint) returns text
language plpgsql stable security definer set search_path = pg_catalog, howdah, pg_temp as $$
declare
  now   timestamptz := clock_timestamp();
  live  howdah.jobs;
  ended howdah.job_history;
begin
  select j.* into live from howdah.jobs j where j.id = explain.job_id;
  if found then
    return format('Job %s (%s) ', live.id, live.kind) || case live.state
      when 'running' then howdah.explain_running(live, now)
      when 'waiting' then case when live.due_at is null then howdah.explain_ready(live, now) else howdah.explain_waiting(live) end
      when 'scheduled' then format('is scheduled for %s, in %s; howdah.reschedule moves it.', to_char(live.due_at, 'YYYY-MM-DD HH24:MI:SS TZ'), howdah.humane(live.due_at - now))
      when 'retrying' then format('failed in attempt %s of %s (%s) and is tried again at %s, in %s; howdah.reschedule moves it.', live.attempt, live.max_attempts,
        howdah.last_error(live.errors), to_char(live.due_at, 'YYYY-MM-DD HH24:MI:SS TZ'), howdah.humane(live.due_at - now))
      else howdah.explain_ready(live, now) end
      || case when live.expires_at is not null and live.started_at is null then format(' It expires at %s.', to_char(live.expires_at, 'YYYY-MM-DD HH24:MI:SS TZ')) else '' end;
  end if;
  select h.* into ended from howdah.job_history h where h.id = explain.job_id limit 1;
  if not found then
    perform howdah.refuse(array['JB007', format('there is no job %s', explain.job_id), 'its history may have been dropped']);
  end if;
  return format('Job %s (%s) ', ended.id, ended.kind) || case ended.state
    when 'completed' then format('completed %s ago in attempt %s of %s%s.', howdah.humane(now - ended.finished_at), ended.attempt, ended.max_attempts,
      coalesce(', after ' || howdah.humane(ended.finished_at - ended.started_at), ''))
    when 'dead' then format('died %s ago in attempt %s of %s%s: %s. howdah retry %s makes a new job of it.', howdah.humane(now - ended.finished_at),
      ended.attempt, ended.max_attempts, case when ended.crashes > 0 then format(', having brought down %s workers', ended.crashes) else '' end,
      howdah.last_error(ended.errors), ended.id)
    else format('was cancelled %s ago by %s%s. howdah retry %s makes a new job of it.', howdah.humane(now - ended.finished_at), coalesce(ended.cancelled_by, 'somebody'),
      coalesce(': ' || ended.cancel_reason, ''), ended.id) end
    || coalesce((select format(' It was tried again as job %s.', max(a.id)) from (
      select j.id from howdah.jobs j where j.retried_from = ended.id and j.id > ended.id
      union all select h.id from howdah.job_history h where h.retried_from = ended.id and h.finished_at >= ended.finished_at) a having max(a.id) is not null), '');
end $$;

create function howdah.explain_running(job howdah.jobs, now timestamptz) returns text language sql stable as $$
select case when w.id is null then 'is held under a lease whose worker is gone; the next sweep takes it back, within five minutes.'
  else format('%s worker %s (%s), whose heartbeat is %s old%s.%s',
    case when job.started_at is not null then format('has been running for %s in attempt %s of %s, in the hands of', howdah.humane(now - job.started_at), job.attempt, job.max_attempts)
         else format('was claimed %s ago and waits for its start, or runs since less than a second, in the hands of', howdah.humane(now - job.claimed_at)) end,
    w.id, w.name, howdah.humane(now - w.beat_at),
    case when w.beat_at < now - w.ttl then ': it is dead, and any other worker takes the job back'
         when job.started_at < now - coalesce(job.timeout, k.timeout, interval '300 s') then format(': it has run past its timeout of %s', howdah.humane(coalesce(job.timeout, k.timeout, interval '300 s')))
         when w.draining then ': it drains, and gives the job back at its deadline' else '' end,
    coalesce((select format(' %s asked %s ago for it to be cancelled.', coalesce(s.by, 'Somebody'), howdah.humane(now - s.created_at))
              from howdah.signals s where s.job_id = job.id order by s.id limit 1), '')) end
from (select 1) one left join howdah.workers w on w.id = job.leased_by left join howdah.kinds k on k.name = job.kind $$;

create function howdah.explain_waiting(job howdah.jobs) returns text language sql stable as $$
select coalesce(
  (select format('waits for %s of the jobs that it depends on: %s.', count(*),
     string_agg(format('%s (%s)', d.depends_on, coalesce(d.outcome, j.state, 'ended')), ', ' order by d.depends_on) filter (where d.place <= 5)
       || case when count(*) > 5 then ', …' else '' end)
   from (select d.*, row_number() over (order by d.depends_on) as place from howdah.dependencies d where d.job_id = job.id) d
   left join howdah.jobs j on j.id = d.depends_on having count(*) > 0),
  (select format('waits for the end of its batch: %s of its jobs live, such as %s; %s have ended.',
     (select case when count(*) > 10000 then 'more than 10000' else count(*)::text end from (select from howdah.jobs j where j.batch = job.id limit 10001) few),
     (select format('%s (%s)', j.id, j.state) from howdah.jobs j where j.batch = job.id order by j.id limit 1),
     (select coalesce(sum(e.completed + e.dead + e.cancelled), 0) from howdah.batch_ends e where e.batch = job.id))
   from howdah.batches b where b.id = job.id),
  'waits, but nothing is on record for it to wait for: the next upkeep lets it go.') $$;

-- The first of these that is true keeps a ready job from running.
create function howdah.explain_ready(job howdah.jobs, now timestamptz) returns text language plpgsql stable
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  paused howdah.queues;
  kind   howdah.kinds;
  able   text;
  ahead  bigint;
  since  text := format(case when job.gate is null then 'has been ready for %s' else 'has waited for %s' end, howdah.humane(greatest(now - job.ready_at, interval '0')));
begin
  select q.* into paused from howdah.queues q where q.name = job.queue and q.paused_at is not null;
  if found then
    return format('%s, but %s paused queue %s %s ago; howdah resume %s lets it run.', since, coalesce(paused.paused_by, 'somebody'), paused.name,
      howdah.humane(now - paused.paused_at), paused.name);
  end if;
  if not exists (select from howdah.workers w where job.kind = any (w.kinds) and w.beat_at > now - w.ttl and not w.draining) then
    select k.* into kind from howdah.kinds k where k.name = job.kind;
    return format('%s, but no living worker has a handler for %s; %s. Start a worker that has it.', since, job.kind,
      case when kind.name is null then 'the kind was never registered'
           when kind.last_worker is not null then format('%s had it last, %s ago', kind.last_worker, howdah.humane(now - kind.last_had_at))
           else 'it was registered, but no worker has had it since' end);
  end if;
  select string_agg(format('%s (%s)', w.id, w.name), ', ' order by w.id) into able from howdah.workers w
    where job.kind = any (w.kinds) and job.queue = any (w.queues) and w.beat_at > now - w.ttl and not w.draining;
  if able is null then
    return format('%s, but the living workers that have a handler for %s do not serve queue %s: they serve %s. Start one with --queues %s.', since, job.kind, job.queue,
      (select string_agg(distinct q.name, ', ') from howdah.workers w cross join unnest(w.queues) q(name)
       where job.kind = any (w.kinds) and w.beat_at > now - w.ttl and not w.draining), job.queue);
  end if;
  if job.suspect then
    select count(*) into ahead from (
      select from howdah.jobs j where j.queue = job.queue and j.due_at is null and j.suspect and ((10 - j.priority), j.id) < ((10 - job.priority), job.id) limit 10001) few;
    return format('%s; a worker died while it held this job, so it is a suspect%s: it runs alone, and %s before it in its queue.', since,
      case when job.crashes > 0 then format(' that has brought down %s', job.crashes) else '' end,
      case when ahead = 1 then 'one suspect is' else ahead || ' suspects are' end);
  end if;
  if job.gate is not null then
    return format('%s; %s It can be run by worker %s.', since, howdah.explain_limited(job, now), able);
  end if;
  select count(*) into ahead from (
    select from howdah.jobs j where j.queue = job.queue and j.due_at is null and not j.suspect and j.gate is null and j.lease is null
      and ((10 - j.priority), j.id) < ((10 - job.priority), job.id) limit 10001) few;
  return format('%s, and %s before it in queue %s (priority %s). It can be run by worker %s.', since,
    case when ahead = 0 then 'nothing stands' when ahead = 1 then 'one job stands' when ahead > 10000 then 'more than 10000 jobs stand' else ahead || ' jobs stand' end,
    job.queue, job.priority, able);
end $$;

-- Which of its keys a job waits for: the first that has no room, and who has it.
create function howdah.explain_limited(job howdah.jobs, now timestamptz) returns text language plpgsql stable
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  name   text;
  rule   howdah.limits;
  held   bigint;
  ahead  bigint;
  first  record;
  filled timestamptz;
begin
  foreach name in array howdah.keys_of(job.limits, job.fifo_key) loop
    if starts_with(name, 'fifo:') then
      -- Whoever holds the key comes before all others, then the oldest that is ready.
      select j.id, j.kind, j.state, j.leased_by, j.due_at into first from howdah.jobs j
        where j.id = coalesce((select h.job_id from howdah.holds h where h.key = name limit 1),
          (select f.id from howdah.jobs f where f.fifo_key = job.fifo_key and f.due_at is null order by f.id limit 1));
      if first.id <> job.id then
        select count(*) into ahead from (
          select from howdah.jobs j where j.fifo_key = job.fifo_key and j.due_at is null and j.id < job.id and j.id <> first.id limit 10001) few;
        return format('it is behind job %s (%s, %s%s) of its FIFO key %s%s; howdah explain %s tells more.', first.id, first.kind, first.state,
          case when first.leased_by is not null then format(' by worker %s', first.leased_by)
               when first.due_at < 'infinity' then format(', due in %s', howdah.humane(first.due_at - now)) else '' end, job.fifo_key,
          case when ahead = 0 then '' when ahead > 10000 then ' and more than 10000 others' else format(' and %s more', ahead) end, first.id);
      end if;
      continue;
    end if;
    rule := howdah.limit_for(name);
    continue when rule.name is null;
    select count(*) into ahead from (
      select from howdah.jobs j where j.gate = name and j.queue = job.queue and j.due_at is null and not j.suspect
        and ((10 - j.priority), j.id) < ((10 - job.priority), job.id) limit 10001) few;
    select count(*) into held from howdah.holds h where h.key = name;
    if held >= rule.concurrency then
      return format('limit %s is reached: %s may run at once%s%s%s. howdah limit set %s --concurrency N changes it.', name,
        case when rule.concurrency = 0 then 'none' else rule.concurrency::text end,
        case when rule.name <> name then format(' (limit %s)', rule.name) else '' end,
        coalesce(', held by ' || (select string_agg(format('job %s (%s)', h.job_id, coalesce('worker ' || w.id || ' ' || w.name, 'no worker')), ', ' order by h.job_id)
          || case when held > 5 then ', …' else '' end
          from (select h.job_id from howdah.holds h where h.key = name order by h.job_id limit 5) h
          left join howdah.jobs j on j.id = h.job_id left join howdah.workers w on w.id = j.leased_by), ''),
        case when ahead = 0 then '' when ahead > 10000 then '; more than 10000 jobs stand before it there' else format('; %s before it there', ahead) end,
        quote_literal(rule.name));
    end if;
    if rule.rate is not null then
      select b.full_at - (rule.burst - 1) / rule.rate * interval '1 second' into filled from howdah.buckets b where b.key = name;
      if filled > now or ahead > 0 then
        return format('limit %s lets %s start in a second%s: the next token is free in %s, %s.', name, rule.rate,
          case when rule.name <> name then format(' (limit %s)', rule.name) else '' end, howdah.humane(greatest(coalesce(filled, now) - now, interval '0')),
          case when ahead = 0 then 'and it is the next' when ahead > 10000 then 'and more than 10000 jobs stand before it'
               else format('and %s before it, which takes %s', ahead, howdah.humane(ahead / rule.rate * interval '1 second')) end);
      end if;
    end if;
  end loop;
  return 'its limits have room, and it starts when a slot of its queue is free.';
end $$;

-- The kinds whose jobs have failed and wait to be tried again, among the first `count` that are due: how many (`cut`: there may be more), the error that most of
-- them met, and in how many seconds the next is tried.
create function howdah.failing(count int default 5000) returns table (kind text, jobs bigint, cut boolean, error text, next_in float8)
language sql stable security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
with due as materialized (
  select j.kind, j.attempt, j.errors, j.due_at from howdah.jobs j where j.due_at < 'infinity' order by j.due_at limit failing.count)
select d.kind, count(*), (select count(*) from due) >= failing.count, mode() within group (order by howdah.last_error(d.errors)),
  greatest(extract(epoch from min(d.due_at) - clock_timestamp()), 0)::float8
from due d where d.attempt > 0 and d.errors is not null group by d.kind order by count(*) desc, d.kind $$;
