-- What people and programs may do to jobs and queues: cancel, retry, reschedule, pause, resume.

-- Ends a live job that no worker holds: one row from jobs to history, as cancelled. The caller has deleted it, and tells
-- howdah.note_ended when its statement is over: what that changes may be in the same statement's reach.
create function howdah.bury_cancelled(job howdah.jobs, by text, reason text) returns boolean language sql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
delete from howdah.dependencies d using (     -- what somebody else holds goes when that one has ended, by howdah.resolve
  select d.ctid as at from howdah.dependencies d where d.job_id = job.id for update skip locked) free where d.ctid = free.at;
insert into howdah.job_history (id, queue, kind, payload, priority, attempt, max_attempts, crashes, lease, leased_by, state, errors, progress,
  cancelled_by, cancel_reason, unique_key, subject, headers, batch, fifo_key, limits, retried_from, timeout, created_at, ready_at, finished_at)
values (job.id, job.queue, job.kind, howdah.without_secrets(job.kind, job.payload), job.priority, job.attempt, job.max_attempts, job.crashes, job.last_lease, null, 'cancelled',
  job.errors, job.progress, by, reason, job.unique_key, job.subject, job.headers, job.batch, job.fifo_key, job.limits, job.retried_from, job.timeout,
  least(job.created_at, clock_timestamp()), job.ready_at, clock_timestamp());   -- as in howdah.ack
select true $$;

-- Cancels one job and gives its state after that. A queued one ends at once. A running one is told within a second, and
-- keeps its true outcome if it ends first; nobody but the engine locks a running row, so the request is a row of signals.
create function howdah.cancel(job_id bigint, by text default null, reason text default null) returns text
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  gone  howdah.jobs;
  ended text;
begin
  delete from howdah.jobs j where j.id = job_id and j.lease is null returning j.* into gone;
  if found then
    perform howdah.bury_cancelled(gone, by, reason), howdah.note_ended(array[gone.id], array['cancelled'], array[gone.batch], false);
    return 'cancelled';
  end if;
  if exists (select from howdah.jobs j where j.id = job_id) then
    insert into howdah.signals (job_id, signal, by, reason) values (job_id, 'cancel', by, reason);
    perform howdah.notify('howdah_control', 'cancel');
    return 'running';
  end if;
  select h.state into ended from howdah.job_history h where h.id = job_id;
  if not found then
    perform howdah.refuse(array['JB007', format('there is no job %s', job_id), 'its history may have been dropped']);
  end if;
  return ended;
end $$;

-- Cancels every live job of a subject and gives their number.
create function howdah.cancel_subject(subject text, by text default null, reason text default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  ended   bigint;
  told    bigint;
  ids     bigint[];
  batches bigint[];
begin
  with mine as materialized (        -- in id order, as everybody who locks several jobs
    select j.id from howdah.jobs j where j.subject = cancel_subject.subject and j.lease is null order by j.id for update),
  gone as (
    delete from howdah.jobs j using mine where j.id = mine.id and j.lease is null returning j)
  select count(howdah.bury_cancelled(g.j, by, reason)), array_agg((g.j).id), array_agg((g.j).batch) into ended, ids, batches from gone g;
  if ended > 0 then
    perform howdah.note_ended(ids, array_fill('cancelled'::text, array[ended::int]), batches, false);
  end if;
  insert into howdah.signals (job_id, signal, by, reason)
  select j.id, 'cancel', by, reason from howdah.jobs j where j.subject = cancel_subject.subject and j.lease is not null;
  get diagnostics told = row_count;
  if told > 0 then perform howdah.notify('howdah_control', 'cancel'); end if;
  return ended + told;
end $$;

-- Carries out requests to cancel whose job is no longer running, forgets those whose job has ended, and gives the others:
-- what a worker compares with the jobs that it holds.
create function howdah.apply_signals() returns table (job_id bigint, by text, reason text) language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
declare
  one  record;
  gone howdah.jobs;
begin
  for one in select s.job_id, min(s.id) as first from howdah.signals s
             where exists (select from howdah.jobs j where j.id = s.job_id and j.lease is null offset 0) group by s.job_id order by s.job_id loop
    delete from howdah.jobs j where j.id = (select k.id from howdah.jobs k where k.id = one.job_id and k.lease is null for update skip locked)
      returning j.* into gone;
    if found then
      perform howdah.bury_cancelled(gone, s.by, s.reason) from howdah.signals s where s.id = one.first;
      perform howdah.note_ended(array[gone.id], array['cancelled'], array[gone.batch], true);
    end if;
  end loop;
  delete from howdah.signals s where not exists (select from howdah.jobs j where j.id = s.job_id offset 0);
  return query select distinct on (s.job_id) s.job_id, s.by, s.reason from howdah.signals s order by s.job_id, s.id;
end $$;

-- Makes a new job of an ended one, with all its attempts before it, and gives the new id. The old one stays as it was.
create function howdah.retry(job_id bigint) returns bigint
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  old    howdah.job_history;
  new_id bigint;
begin
  select h.* into old from howdah.job_history h where h.id = job_id;
  if not found then
    perform howdah.refuse(case when exists (select from howdah.jobs j where j.id = job_id)
      then array['JB007', format('job %s has not ended yet', job_id), 'only an ended job can be retried']
      else array['JB007', format('there is no job %s', job_id), 'its history may have been dropped'] end);
  end if;
  insert into howdah.jobs (queue, kind, payload, priority, max_attempts, timeout, unique_key, subject, headers, retried_from, limits, fifo_key)
  values (old.queue, old.kind, old.payload, old.priority, old.max_attempts, old.timeout, old.unique_key, old.subject, old.headers, old.id, howdah.with_standing(old.limits, old.kind, old.queue), old.fifo_key)
  on conflict (unique_key) where unique_key is not null do nothing
  returning id into new_id;
  if new_id is null then
    perform howdah.refuse(array['JB005', format('a live job has the unique_key %L', old.unique_key), 'wait for it, or cancel it']);
  end if;
  perform howdah.wake(old.queue);
  return new_id;
end $$;

-- Moves a queued job to another time. Refused for a running or an ended one.
create function howdah.reschedule(job_id bigint, run_at timestamptz) returns void
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  due   timestamptz := case when run_at > clock_timestamp() then run_at end;
  queue text;
begin
  if run_at is null or run_at in ('infinity', '-infinity') then
    perform howdah.refuse(array['JB002', format('run_at is %L', run_at), 'a time that comes']);
  end if;
  update howdah.jobs j set due_at = due, ready_at = coalesce(due, clock_timestamp())
    where j.id = job_id and j.lease is null and j.due_at is distinct from 'infinity' returning j.queue into queue;
  if not found then
    perform howdah.refuse(array['JB007', format('job %s is not queued', job_id), 'only a queued job can be moved']);
  end if;
  if due is null then perform howdah.wake(queue); else perform howdah.notify('howdah_control', 'due'); end if;
end $$;

-- Stops the claims of a queue; what runs goes on. Claims look at this themselves, so it holds from the commit on.
create function howdah.pause(queue text, by text default null) returns void
language sql security definer set search_path = pg_catalog, howdah, pg_temp as $$
insert into howdah.queues as q (name, paused_at, paused_by) values (pause.queue, clock_timestamp(), pause.by)
on conflict (name) do update set paused_at = coalesce(q.paused_at, excluded.paused_at), paused_by = coalesce(q.paused_by, excluded.paused_by) $$;

-- Lets a queue be claimed again, and wakes its workers.
create function howdah.resume(queue text) returns void
language sql security definer set search_path = pg_catalog, howdah, pg_temp as $$
update howdah.queues q set paused_at = null, paused_by = null where q.name = resume.queue;
select howdah.notify('howdah', resume.queue) $$;
