-- Who waits for the end of jobs: other jobs (depends_on), the job behind a batch, and programs that want to know.
--
-- Every end of a job is told to howdah.note_ended in the transaction that ends it, and that is the fast way. It never waits for
-- a row, so it may have to pass something over; and a dependent whose transaction commits after the job has ended is seen by
-- nobody. Both are found by howdah.settle, which compares what waits with what lives: correct by itself, only later.
--
-- `xmax = 0 or xmax = xmin` tells of a live job, without locking it, that nobody else was ending it when it was read: whoever ends it
-- locks it later, and looks later. (A claim locks what it then writes: its number stands in both.) Of any other nobody can know.
--
-- These tables are mostly empty when their statistics are taken, and a session keeps a plan that it made for empty ones. So plans are pinned: from what
-- is known to rows by their index. `offset 0` keeps a subquery from becoming a join, which the planner would begin at a table that it takes for empty;
-- `not isfinite(due_at)` is `due_at = 'infinity'` said so that no index answers it.

-- Lets a job wait for those of `depends_on` that have not completed, and tells whether there are any. Refused (JB007) for a
-- job that is nowhere: an id from a transaction that has not committed, or one whose history is gone.
create function howdah.depend(job_id bigint, depends_on bigint[], required boolean) returns boolean language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  missing bigint;
  batch   bigint := (select j.batch from howdah.jobs j where j.id = depend.job_id);
begin
  -- A member that waits for its own batch would wait for ever. Other members were looked at when they came.
  if batch is not null and exists (
      with recursive ahead(id) as (
        select w.id from unnest(depends_on) w(id) where not exists (select from howdah.jobs j where j.id = w.id and j.batch = batch offset 0)
        union
        select n.id from ahead a cross join lateral (
          select d.depends_on as id from howdah.dependencies d where d.job_id = a.id
          union all select m.id from howdah.jobs m where m.batch = a.id and not isfinite(m.due_at) offset 0) n
        where not exists (select from howdah.jobs j where j.id = n.id and j.batch = batch offset 0))
      select from (select a.id from ahead a limit 10000) a where a.id = batch) then
    perform howdah.refuse(array['JB002', format('depends_on: it would wait for the end of batch %s, of which it is to be a part', batch), 'leave one of them out']);
  end if;
  with wanted as (
    select distinct w.id from unnest(depends_on) w(id)),
  found as materialized (
    select w.id, coalesce(j.state, h.state) as state
    from wanted w left join lateral (select j.state from howdah.jobs j where j.id = w.id and w.id <> depend.job_id limit 1) j on true
    left join lateral (select h.state from howdah.job_history h where h.id = w.id limit 1) h on j.state is null),
  kept as (
    insert into howdah.dependencies (job_id, depends_on, required, outcome)
    select depend.job_id, f.id, depend.required, case when f.state in ('dead', 'cancelled') then f.state end
    from found f where f.state <> 'completed' and (depend.required or f.state not in ('dead', 'cancelled')) order by f.id)
  select min(f.id) filter (where f.state is null) into missing from found f;
  if missing is not null then
    perform howdah.refuse(array['JB007', format('depends_on: there is no job %s', missing), 'enqueue it first, in this transaction or in one that has committed']);
  end if;
  if not exists (select from howdah.dependencies d where d.job_id = depend.job_id) then return false; end if;
  update howdah.jobs j set due_at = 'infinity' where j.id = depend.job_id;
  perform howdah.notify('howdah_control', 'settle');   -- heard after the commit: one of them may have ended before it
  return true;
end $$;

-- Opens a batch: a job that waits until every job that is enqueued with `batch => its id` has ended, and then runs once, with
-- headers.batch = {"completed", "dead", "cancelled"}. Gives that id. Enqueue the first members in the same transaction: a
-- batch without a living member is over. Members may enqueue more members.
create function howdah.create_batch(kind text, payload jsonb default '{}', queue text default null, priority int default null,
  max_attempts int default null, timeout interval default null, unique_key text default null, subject text default null,
  headers jsonb default null)
returns bigint language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  batch bigint;
begin
  select e.id into batch from howdah.enqueue(create_batch.kind, create_batch.payload, create_batch.queue, create_batch.priority,
    delay => interval '1 day', max_attempts => create_batch.max_attempts, timeout => create_batch.timeout,
    unique_key => create_batch.unique_key, on_conflict => 'error', subject => create_batch.subject, headers => create_batch.headers) e;
  update howdah.jobs j set due_at = 'infinity', ready_at = j.created_at where j.id = batch;
  insert into howdah.batches values (batch);
  perform howdah.notify('howdah_control', 'settle');   -- heard after the commit: it may be empty, or over already
  return batch;
end $$;

-- Keeps a batch open until the caller's transaction ends, so that a job can join it. Refused (JB007) once it is over. Callers do
-- not wait for one another: the lock is shared, and conflicts only with the one that ends the batch.
create function howdah.join_batch(batch bigint) returns void language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
begin
  perform from howdah.jobs j where j.id = join_batch.batch and not isfinite(j.due_at) and exists (select from howdah.batches b where b.id = join_batch.batch)
    for key share of j;
  if not found then
    perform howdah.refuse(array['JB007', format('batch %s is over, or was never opened', batch), 'howdah.create_batch gives the id; a batch is over when all of its jobs have ended']);
  end if;
end $$;

-- Tells of jobs that ended in this transaction: programs that wait for them, jobs that depend on them, batches that they belong
-- to. states[i] is completed, dead or cancelled. Never waits for a row. `brief`: this transaction ends at once, so it may hold what
-- waits; one that stays open must not, or nobody could join a batch meanwhile: it leaves the rest to howdah.settle. So does one
-- with an old snapshot, which cannot see who has joined, and so does the end of a job for which very many wait.
-- What nobody waits for pays a look into each index. Pinned: the tables are mostly empty when their statistics are taken.
create function howdah.note_ended(ids bigint[], states text[], batches bigint[], brief boolean) returns void language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
declare
  acts    boolean := brief and current_setting('transaction_isolation') = 'read committed';
  -- Without history, how a job failed is told here or nowhere.
  most    int := case when 'dead' = any (states) or 'cancelled' = any (states) then null else 1000 end;
  heard   bigint[];
  waiting bigint[];
  groups  bigint[];
  batch   bigint;
  passed  boolean := false;
begin
  if exists (select from howdah.waiters w where w.job_id = any (note_ended.ids)) then
    with free as materialized (
      select w.ctid as at from howdah.waiters w where w.job_id = any (note_ended.ids) for update skip locked),
    gone as (
      delete from howdah.waiters w using free where w.ctid = free.at returning w.job_id)
    select array_agg(distinct g.job_id) into heard from gone g;
    perform howdah.notify('howdah_control', 'ended ' || h.id) from unnest(heard) h(id);
  end if;

  if exists (select from howdah.dependencies d where d.depends_on = any (note_ended.ids) and d.outcome is null) then
    with free as materialized (
      select d.ctid as at from howdah.dependencies d where d.depends_on = any (note_ended.ids) and d.outcome is null limit most for update skip locked),
    marked as (
      update howdah.dependencies d set outcome = e.state from free, unnest(note_ended.ids, note_ended.states) e(id, state)
      where d.ctid = free.at and e.id = d.depends_on returning d.job_id)
    select array_agg(distinct m.job_id) into waiting from marked m;
    passed := exists (select from howdah.dependencies d where d.depends_on = any (note_ended.ids) and d.outcome is null);
  end if;

  if exists (select from howdah.batches b where b.id = any (note_ended.ids)) then     -- a job behind a batch that was cancelled itself
    delete from howdah.batch_ends e where e.batch = any (note_ended.ids);
    delete from howdah.batches b where b.id = any (note_ended.ids);
  end if;
  if array_remove(note_ended.batches, null) <> '{}' then
    with ends as (
      insert into howdah.batch_ends (batch, completed, dead, cancelled)
      select e.batch, count(*) filter (where e.state = 'completed'), count(*) filter (where e.state = 'dead'), count(*) filter (where e.state = 'cancelled')
      from unnest(note_ended.batches, note_ended.states) e(batch, state)
      where exists (select from howdah.batches b where b.id = e.batch offset 0) group by e.batch order by e.batch
      returning batch)
    select array_agg(e.batch order by e.batch) into groups from ends e;
  end if;

  if acts then
    passed := howdah.resolve(waiting[:1000]) <> '{}' or cardinality(waiting) > 1000 or passed;
    foreach batch in array coalesce(groups, '{}') loop
      passed := not howdah.end_batch(batch) or passed;
    end loop;
  end if;
  if passed or not acts and (waiting is not null or groups is not null) then
    perform howdah.notify('howdah_control', 'settle');  -- heard after the commit, by somebody who can see all of it
  end if;
end $$;

-- Acts on what is known of the dependencies of these jobs: lets those go that have none left, and cancels those that lost one they
-- need. Gives those that somebody holds this moment.
create function howdah.resolve(ids bigint[]) returns bigint[] language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
declare
  mine    bigint[];
  lost    record;
  gone    howdah.jobs;
  ended   bigint[] := '{}';
  batches bigint[] := '{}';
  queues  text[];
  later   boolean;
begin
  if ids is null then return '{}'; end if;
  select array_agg(f.id) into mine from (select j.id from howdah.jobs j where j.id = any (resolve.ids) order by j.id for update skip locked) f;
  delete from howdah.dependencies d where d.job_id = any (mine) and (d.outcome = 'completed' or d.outcome is not null and not d.required);
  -- What completes from here on is marked by others, who do not wait for us: it is no loss, and is dealt with by the next look.
  for lost in select distinct on (d.job_id) d.job_id, d.depends_on, d.outcome from howdah.dependencies d
              where d.job_id = any (mine) and d.required and d.outcome <> 'completed' order by d.job_id, d.depends_on loop
    delete from howdah.jobs j where j.id = lost.job_id and j.lease is null returning j.* into gone;
    if found then
      perform howdah.bury_cancelled(gone, 'howdah', format('it depends on job %s, which is %s', lost.depends_on, lost.outcome));
      ended := ended || gone.id;
      batches := batches || gone.batch;
    end if;
  end loop;
  if ended <> '{}' then
    perform howdah.note_ended(ended, array_fill('cancelled'::text, array[cardinality(ended)]), batches, false);
  end if;
  with free as (
    update howdah.jobs j set due_at = case when j.ready_at > clock_timestamp() then j.ready_at end, ready_at = greatest(j.ready_at, clock_timestamp())
    where j.id = any (mine) and not isfinite(j.due_at) and not exists (select from howdah.dependencies d where d.job_id = j.id offset 0)
      and not exists (select from howdah.batches b where b.id = j.id offset 0)
    returning j.queue, j.due_at)
  select array_agg(distinct f.queue) filter (where f.due_at is null), bool_or(f.due_at is not null) into queues, later from free f;
  perform howdah.wake(q.name) from unnest(queues) q(name);
  if later then perform howdah.notify('howdah_control', 'due'); end if;
  delete from howdah.dependencies d using (               -- what somebody held when their job was cancelled
    select d.ctid as at from howdah.dependencies d where d.job_id = any (resolve.ids) and d.outcome is not null
      and not exists (select from howdah.jobs j where j.id = d.job_id offset 0) for update skip locked) old where d.ctid = old.at;
  return coalesce((select array_agg(distinct d.job_id) from howdah.dependencies d where d.job_id = any (resolve.ids) and d.outcome is not null), '{}');
end $$;

-- Lets the job behind a batch go if no member lives any more, with the counts of how they ended. False: nobody can know this moment.
-- The lock comes first and the look in a statement of its own: whoever joined has committed by then, or joins no more. A member
-- that is there for sure comes before both: its end is somebody's who comes later, and acks need not take turns at the lock.
create function howdah.end_batch(batch bigint) returns boolean language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
declare
  queue text;
begin
  if exists (select from howdah.jobs j where j.batch = end_batch.batch and (j.xmax = 0 or j.xmax = j.xmin)) then return true; end if;
  perform from howdah.jobs j where j.id = end_batch.batch and not isfinite(j.due_at) for update skip locked;
  if not found then
    return not exists (select from howdah.batches b where b.id = end_batch.batch);
  end if;
  if exists (select from howdah.jobs j where j.batch = end_batch.batch) then return false; end if;
  delete from howdah.batches b where b.id = end_batch.batch;
  if not found then return true; end if;
  with ends as (
    delete from howdah.batch_ends e where e.batch = end_batch.batch returning e.*),
  total as (
    select coalesce(sum(e.completed), 0) as completed, coalesce(sum(e.dead), 0) as dead, coalesce(sum(e.cancelled), 0) as cancelled from ends e)
  update howdah.jobs j set due_at = null, ready_at = clock_timestamp(),
    headers = coalesce(j.headers, '{}') || jsonb_build_object('batch', jsonb_build_object('completed', t.completed, 'dead', t.dead, 'cancelled', t.cancelled))
  from total t where j.id = end_batch.batch returning j.queue into queue;
  perform howdah.wake(queue);
  return true;
end $$;

-- Compares what waits with what lives and lets go what has nothing left to wait for; tells how many jobs and batches that were, and in
-- how many seconds to look again: 0 if there may be more than `count`, 1 if somebody holds something, null if all is known. The slow
-- way, to be called now and then, and on the word `settle`. One caller at a time does it; it never waits for a row.
-- A job that is neither alive nor in history counts as completed: there is no history, or it ended long ago.
create function howdah.settle(count int default 10000, out seen int, out next_in float8) language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
declare
  waiting bigint[];
  passed  bigint[] := '{}';
  stuck   bigint[];
  held    boolean;
  batch   bigint;
begin
  seen := 0;
  if current_setting('transaction_isolation') <> 'read committed' then
    perform howdah.refuse(array['JB002', 'howdah.settle must see what has just been committed', 'call it at isolation level read committed']);
  end if;
  if not howdah.try_lock(7316042, 3) then
    next_in := 1;                                    -- whoever is at it may have looked too early for us, or die
    return;
  end if;
  with late as materialized (
    select d.ctid as at, d.depends_on, exists (select from howdah.jobs j where j.id = d.depends_on offset 0) as lives from howdah.dependencies d
    where d.outcome is null and not exists (           -- who has joined a batch leaves a mark on its job, which waits
      select from howdah.jobs j where j.id = d.depends_on and (j.xmax = 0 or j.xmax = j.xmin or j.due_at = 'infinity') offset 0)
    limit settle.count for update skip locked),
  marked as (
    update howdah.dependencies d set outcome = coalesce((select h.state from howdah.job_history h where h.id = l.depends_on limit 1), 'completed')
    from late l where d.ctid = l.at and not l.lives)
  select coalesce(bool_or(l.lives), false) into held from late l;
  loop                                               -- what is cancelled cancels others: a round a level
    select array_agg(d.job_id) into waiting
      from (select distinct d.job_id from howdah.dependencies d where d.outcome is not null and d.job_id <> all (passed) limit settle.count - seen) d;
    exit when waiting is null;
    stuck := howdah.resolve(waiting);
    passed := passed || stuck;
    seen := seen + cardinality(waiting) - cardinality(stuck);
  end loop;
  foreach batch in array coalesce((select array_agg(b.id order by b.id) from (
      select b.id from howdah.batches b
      where not exists (select from howdah.jobs j where j.batch = b.id and (j.xmax = 0 or j.xmax = j.xmin) offset 0) limit settle.count) b), '{}') loop
    if howdah.end_batch(batch) then seen := seen + 1; else held := true; end if;
  end loop;
  delete from howdah.batch_ends e using (
    select e.ctid as at from howdah.batch_ends e where not exists (select from howdah.batches b where b.id = e.batch offset 0) for update skip locked) old
    where e.ctid = old.at;
  delete from howdah.waiters w using (
    select w.ctid as at from howdah.waiters w where w.until < now() - interval '1 minute' for update skip locked) old where w.ctid = old.at;
  perform howdah.sweep_limits();
  next_in := case when seen >= settle.count then 0 when held or passed <> '{}' then 1 end;
end $$;

-- Asks to be told of the end of a job within so many seconds, at most an hour, on channel howdah_control as `ended <id>`, and gives its state now.
-- Refused (JB007) for a job that is nowhere. The word may be lost: whoever waits looks now and then.
create function howdah.watch(job_id bigint, waiter text, seconds float8 default 60) returns text
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  state text;
begin
  insert into howdah.waiters as w (job_id, waiter, until) values (job_id, waiter, clock_timestamp() + least(seconds, 3600) * interval '1 second')
    on conflict on constraint waiters_pkey do update set until = excluded.until;
  -- A statement of its own: what ends after this look sees the row above.
  select s.state into state from howdah.job_status s where s.id = job_id;
  if state is null then
    perform howdah.refuse(array['JB007', format('there is no job %s', job_id), 'its history may have been dropped']);
  end if;
  if state in ('completed', 'dead', 'cancelled') then
    delete from howdah.waiters w where w.job_id = watch.job_id and w.waiter = watch.waiter;
  end if;
  return state;
end $$;

-- Keeps what a step of a job gave, if the lease is the current one, and gives what is kept: the first result of that name. Null: the
-- lease is lost. Safe to repeat.
create function howdah.keep_step(job_id bigint, lease bigint, name text, result jsonb) returns jsonb language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  kept jsonb;
begin
  perform from howdah.jobs j where j.id = job_id and j.lease = keep_step.lease for update;
  if not found then return null; end if;
  insert into howdah.steps as s (job_id, name, result) values (job_id, name, result) on conflict on constraint steps_pkey do nothing;
  select s.result into kept from howdah.steps s where s.job_id = keep_step.job_id and s.name = keep_step.name;
  return kept;
end $$;

-- Enqueues many jobs if nobody makes us wait, and tells whether it did: false if somebody holds a unique key or a batch this moment.
create function howdah.enqueue_unless_held(jobs jsonb) returns boolean language plpgsql set lock_timeout = '50ms' as $$
begin
  perform howdah.enqueue_many(jobs);
  return true;
exception when lock_not_available or deadlock_detected then
  return false;
end $$;

-- Acks one job and enqueues others (an array as for enqueue_many) in one commit; false, and nothing is enqueued, if the ack was not
-- written: howdah.ack_fate tells why. The others come first: they may join this job's batch.
create function howdah.ack_with(job_id bigint, lease bigint, outcome text, result jsonb, error jsonb, delay float8, age float8, run float8,
  progress jsonb, keep boolean, jobs jsonb)
returns boolean language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
begin
  perform from howdah.jobs j where j.id = job_id and j.lease = ack_with.lease for update skip locked;
  if not found then return false; end if;
  if not howdah.enqueue_unless_held(jobs) then return false; end if;
  return exists (select from howdah.ack(array[job_id], array[lease], array[outcome], array[result], array[error], array[delay], array[age],
                                        array[run], array[progress], keep));
end $$;
