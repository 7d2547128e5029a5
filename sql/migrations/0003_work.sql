-- A job's way through a worker: claim, start, ack; and what makes jobs ready: promote, coalesce, rescue.

-- Takes ready jobs for one worker under one new lease: of each queue at most its room, the most urgent first, oldest
-- first within a priority. Where it looks is said by the lines: line i walks queue line_queues[i] from just behind
-- (line_ranks[i], line_pasts[i]) to the end of rank line_uptos[i], or in it up to id line_ends[i], a rank being 10 - priority. A look from the
-- start is the one line (-1, 0, 10).
--
-- The plan is pinned, whatever the statistics say: index order is claim order, and with a sort, a bitmap or another index
-- a claim reads the whole queue (717 ms for 100 rows at a million). It is made once: making it anew takes half a millisecond, as long as
-- fifty jobs. `materialized` keeps the limit beneath the lock.
-- Claims touch no indexed column, see howdah.jobs.
create function howdah.claim_ready(worker bigint, lease bigint, kinds text[], queues text[], rooms int[],
  line_queues text[], line_ranks int[], line_pasts bigint[], line_uptos int[], line_ends bigint[] default null)
returns table (id bigint, queue text, kind text, payload jsonb, priority smallint, attempt smallint, max_attempts smallint, timeout float8,
  waited float8, expires_in float8, subject text, headers jsonb, created_at timestamptz, crashes smallint, batch bigint)
language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
  moment timestamptz := clock_timestamp();
  limited_kinds  text[];
  limited_queues text[];
begin
  -- What a kind or a queue has limits for is claimed by howdah.claim_limited alone, also if that was not known when a job came.
  if exists (select from howdah.limits l where l.standing) then
    select * into limited_kinds, limited_queues from howdah.standing_among(claim_ready.kinds, claim_ready.queues);
    if limited_kinds <> '{}' or limited_queues <> '{}' then
      if -1 = any (claim_ready.line_ranks) then     -- a look, which comes by all of them
        perform howdah.send_to_gates(claim_ready.queues, limited_queues, limited_kinds);
      end if;
      claim_ready.kinds := array(select k.name from unnest(claim_ready.kinds) k(name) where k.name <> all (limited_kinds));
      claim_ready.rooms := array(select case when w.queue = any (limited_queues) then 0 else w.room end
        from unnest(claim_ready.queues, claim_ready.rooms) with ordinality w(queue, room, place) order by w.place);
    end if;
  end if;
  return query
  with wanted as (
    select * from unnest(claim_ready.queues, claim_ready.rooms) as w(queue, room)),
  line as (
    select l.queue, l.rank, l.past, l.upto, coalesce(l.ends, 9223372036854775807) as ends
    from unnest(claim_ready.line_queues, claim_ready.line_ranks, claim_ready.line_pasts, claim_ready.line_uptos, claim_ready.line_ends)
      as l(queue, rank, past, upto, ends)),
  picked as materialized (
    select next.at
    from wanted cross join lateral (
      select one.at
      from line cross join lateral (
        select j.ctid as at
        from howdah.jobs j
        where j.queue = line.queue and j.due_at is null and not j.suspect and j.gate is null
          and ((10 - j.priority), j.id) > (line.rank, line.past) and ((10 - j.priority), j.id) <= (line.upto, line.ends)
          and j.lease is null and j.kind = any (claim_ready.kinds)
        order by (10 - j.priority), j.id
        limit wanted.room
        for update skip locked) one
      where line.queue = wanted.queue
      limit wanted.room) next
    where not exists (select from howdah.queues q where q.name = wanted.queue and q.paused_at is not null))
  update howdah.jobs j
  set lease = claim_ready.lease, leased_by = claim_ready.worker, attempt = j.attempt + 1, claimed_at = greatest(moment, j.created_at)
  from picked where j.ctid = picked.at
  returning j.id, j.queue, j.kind, j.payload, j.priority, j.attempt, j.max_attempts, date_part('epoch', j.timeout),
    greatest(date_part('epoch', moment - j.ready_at), 0), date_part('epoch', j.expires_at - moment),
    j.subject, j.headers, j.created_at, j.crashes, j.batch;
end $$;

-- Finds ready jobs that lie behind: line i walks queue line_queues[i] within rank line_ranks[i] up to id line_pasts[i]; the lines of a queue are one
-- after the other. Of each queue at most `most`, in claim order. It takes nothing, so it may last: what it finds is claimed by lines of its own.
-- The plan is pinned like that of a claim.
create function howdah.find_behind(kinds text[], queues text[], most int, line_queues text[], line_ranks int[], line_pasts bigint[])
returns table (queue text, rank int, id bigint)
language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
  limited_kinds  text[];
  limited_queues text[];
begin
  if exists (select from howdah.limits l where l.standing) then
    select * into limited_kinds, limited_queues from howdah.standing_among(find_behind.kinds, find_behind.queues);
    if limited_kinds <> '{}' or limited_queues <> '{}' then
      perform howdah.send_to_gates(find_behind.queues, limited_queues, limited_kinds);
    end if;
  end if;
  return query
  with line as (
    select * from unnest(find_behind.line_queues, find_behind.line_ranks, find_behind.line_pasts) as l(queue, rank, past))
  select wanted.name, next.rank, next.id
  from unnest(find_behind.queues) wanted(name) cross join lateral (
    select line.rank, one.id
    from line cross join lateral (
      select j.id
      from howdah.jobs j
      where j.queue = line.queue and j.due_at is null and not j.suspect and j.gate is null and (10 - j.priority) = line.rank and j.id <= line.past
        and j.lease is null and j.kind = any (find_behind.kinds)
      order by j.id
      limit find_behind.most) one
    where line.queue = wanted.name
    limit find_behind.most) next
  where not exists (select from howdah.queues q where q.name = wanted.name and q.paused_at is not null);
end $$;

-- Takes one suspect. With `begun` its start is written, too: in the same commit, by a worker that has kept a slot free for it and calls its handler
-- at once; else, and for a job that may run at most once, by a statement of its own right before that. A suspect that only waited when its worker died has brought down nobody.
-- `before_id` is the suspect before it, held under `before_lease`, which has run: its start is taken back, since from now on it brings down nobody, and what
-- came of it need not be written yet. If somebody holds that row this moment, or the job may run at most once, nothing is taken: ask again without
-- it when its end is written.
create function howdah.claim_suspect(worker bigint, lease bigint, kinds text[], queues text[], begun boolean default false,
  before_id bigint default null, before_lease bigint default null)
returns table (id bigint, queue text, kind text, payload jsonb, priority smallint, attempt smallint, max_attempts smallint, timeout float8,
  waited float8, expires_in float8, subject text, headers jsonb, created_at timestamptz, crashes smallint, batch bigint)
language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
  moment timestamptz := clock_timestamp();
  one    record;
begin
  if before_id is not null then
    update howdah.jobs j set started_at = null from (
      select k.id from howdah.jobs k where k.id = before_id and k.lease = before_lease and k.max_attempts > 1 for update skip locked) was
    where j.id = was.id;
    if not found and exists (select from howdah.jobs k where k.id = before_id and k.lease = before_lease) then return; end if;
  end if;
  if exists (select from howdah.limits l where l.standing) then
    update howdah.jobs j set limits = k.keys, gate = (howdah.keys_of(k.keys, j.fifo_key))[1]
    from (select s.id, howdah.with_standing(s.limits, s.kind, s.queue) as keys from howdah.jobs s
          where s.due_at is null and s.suspect and s.gate is null and s.lease is null order by s.id for update skip locked) k
    where j.id = k.id and k.keys is not null;
  end if;
  claim_suspect.queues := array(select n.queue from unnest(claim_suspect.queues) n(queue)
    where not exists (select from howdah.queues q where q.name = n.queue and q.paused_at is not null));
  return query
  with picked as materialized (
    select j.ctid as at
    from howdah.jobs j
    where j.queue = any (claim_suspect.queues) and j.due_at is null and j.suspect and j.gate is null and j.lease is null and j.kind = any (claim_suspect.kinds)
    order by (10 - j.priority), j.id
    limit 1
    for update skip locked)
  update howdah.jobs j
  set lease = claim_suspect.lease, leased_by = claim_suspect.worker, attempt = j.attempt + 1, claimed_at = greatest(moment, j.created_at),
    started_at = case when begun and j.max_attempts > 1 then greatest(moment, j.created_at) end
  from picked where j.ctid = picked.at
  returning j.id, j.queue, j.kind, j.payload, j.priority, j.attempt, j.max_attempts, extract(epoch from j.timeout)::float8,
    greatest(extract(epoch from moment - j.ready_at), 0)::float8, extract(epoch from j.expires_at - moment)::float8,
    j.subject, j.headers, j.created_at, j.crashes, j.batch;
  if found then return; end if;
  -- Those that have keys take them first, or are passed over.
  for one in
    select j.id, j.limits, j.fifo_key from howdah.jobs j
    where j.queue = any (claim_suspect.queues) and j.due_at is null and j.suspect and j.gate is not null and j.lease is null and j.kind = any (claim_suspect.kinds)
      and current_setting('transaction_isolation') = 'read committed'
    order by (10 - j.priority), j.id
    for update skip locked loop
    continue when (howdah.acquire(one.id, howdah.keys_of(one.limits, one.fifo_key))).blocked is not null;
    return query
    update howdah.jobs j
    set lease = claim_suspect.lease, leased_by = claim_suspect.worker, attempt = j.attempt + 1, claimed_at = greatest(moment, j.created_at), gate = null,
      started_at = case when begun and j.max_attempts > 1 then greatest(moment, j.created_at) end
    where j.id = one.id
    returning j.id, j.queue, j.kind, j.payload, j.priority, j.attempt, j.max_attempts, extract(epoch from j.timeout)::float8,
      greatest(extract(epoch from moment - j.ready_at), 0)::float8, extract(epoch from j.expires_at - moment)::float8,
      j.subject, j.headers, j.created_at, j.crashes, j.batch;
    return;
  end loop;
end $$;

-- The list of errors with one more: the last ten, each knowing its attempt and time.
create function howdah.with_error(errors jsonb, error jsonb, attempt smallint, at timestamptz) returns jsonb language sql immutable parallel safe as $$
select case when error is null then errors
  else (case when jsonb_array_length(errors) >= 10 then errors - 0 else coalesce(errors, '[]') end)
    || jsonb_build_array(error || jsonb_build_object('attempt', attempt, 'at', at)) end $$;

-- A payload without what its kind declares secret: what history keeps of jobs that nobody has to run again.
create function howdah.without_secrets(kind text, payload jsonb) returns jsonb language sql stable as $$
select coalesce((select without_secrets.payload - k.secret from howdah.kinds k where k.name = without_secrets.kind), without_secrets.payload) $$;

-- Writes what came of attempts, all fenced by (id, lease), and returns the ids that it wrote. The others are busy
-- (somebody holds the row this moment), repeated or lost: howdah.ack_fate tells. It never waits: an ack that waits for a
-- row that a user's open transaction holds would hold up all the others.
--   completed, dead, cancelled   end the job; errors[i] is the error, for cancelled {"by", "reason"}
--   retried, snoozed             send it back after delays[i] seconds; a snoozed attempt is not counted
--   released                     gives it back unharmed: attempt not counted, still a suspect if it was one
--   rescued, crashed             the same after its worker died: as a suspect; or dead, one crash more
-- ages[i] is how many seconds ago the handler started, runs[i] how long it ran; null: it never started. progresses[i], if any, is the
-- last one. With keep false no history is kept. Payload fields that are declared secret go when the job completes or is cancelled; a dead
-- one keeps them, so that it can be retried.
create function howdah.ack(ids bigint[], leases bigint[], outcomes text[], results jsonb[], errors jsonb[], delays float8[], ages float8[], runs float8[],
  progresses jsonb[], keep boolean)
returns setof bigint language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
declare
  moment  timestamptz := clock_timestamp();
  secrets boolean := exists (select from howdah.kinds k where k.secret <> '{}');
  written bigint[];
  ended   bigint[];
  states  text[];
  batches bigint[];
  unused  bigint[];
begin
  with done as materialized (
    select * from unnest(ack.ids, ack.leases, ack.outcomes, ack.results, ack.errors, ack.delays, ack.ages, ack.runs, ack.progresses)
      as d(id, lease, outcome, result, error, delay, age, run, progress) order by d.id),
  held as materialized (
    select locked.at, locked.begun, d.id, d.lease, d.result, d.delay, d.age, d.run, d.progress, coalesce(stop.error, d.error) as error,
      -- One attempt too many would break every claim that meets the job.
      coalesce(stop.outcome, case when d.outcome = 'retried' and locked.spent then 'dead' else d.outcome end) as outcome
    from done d cross join lateral (
      select j.ctid as at, j.attempt >= j.max_attempts as spent, j.started_at is not null as begun from howdah.jobs j where j.id = d.id and j.lease = d.lease for update skip locked) locked
    left join lateral (               -- a job that would come back, and that somebody wants cancelled, does not come back
      select 'cancelled' as outcome, jsonb_build_object('by', s.by, 'reason', s.reason) as error
      from howdah.signals s where s.job_id = d.id and d.outcome in ('retried', 'snoozed', 'released', 'rescued') order by s.id limit 1) stop on true),
  gone as (
    delete from howdah.jobs j using held d where j.ctid = d.at and d.outcome in ('completed', 'dead', 'cancelled', 'crashed')
    returning j.*, d.outcome, d.result, d.error, d.progress as last_progress, d.run,
      least(moment, greatest(j.claimed_at, coalesce(j.started_at, moment - d.age * interval '1 second'))) as began, d.age is null and j.started_at is null as unstarted),
  kept as (
    insert into howdah.job_history (id, queue, kind, payload, priority, attempt, max_attempts, crashes, lease, leased_by, state, result, errors, progress,
      cancelled_by, cancel_reason, unique_key, subject, headers, batch, fifo_key, limits, retried_from, timeout, created_at, ready_at, claimed_at, started_at, finished_at)
    select g.id, g.queue, g.kind,
      case when secrets and g.outcome in ('completed', 'cancelled') then howdah.without_secrets(g.kind, g.payload) else g.payload end,
      g.priority, g.attempt, g.max_attempts, g.crashes + (g.outcome = 'crashed')::int,
      case when g.outcome <> 'crashed' then g.lease end, g.leased_by,
      case g.outcome when 'crashed' then 'dead' else g.outcome end, g.result,
      -- Called for failures alone: a function that cannot be inlined costs more than the rest of the row.
      case when g.error is null or g.outcome = 'cancelled' then g.errors else howdah.with_error(g.errors, g.error, g.attempt, moment) end,
      coalesce(g.last_progress, g.progress),
      case when g.outcome = 'cancelled' then g.error ->> 'by' end, case when g.outcome = 'cancelled' then g.error ->> 'reason' end,
      g.unique_key, g.subject, g.headers, g.batch, g.fifo_key, g.limits, g.retried_from, g.timeout,
      -- Nothing later than this moment: what was written before the clock was set back would want a day that history does not have.
      least(g.created_at, moment), g.ready_at, least(g.claimed_at, moment),
      case when not g.unstarted then g.began end, greatest(g.began, least(g.claimed_at, moment), least(moment, g.began + g.run * interval '1 second'))
    from gone g where ack.keep),
  back as (
    update howdah.jobs j
    set lease = null, leased_by = null, claimed_at = null, started_at = null,
      last_lease = case d.outcome when 'rescued' then j.last_lease else d.lease end,  -- its own worker has lost it, whatever it acks later
      attempt = case d.outcome when 'retried' then j.attempt else j.attempt - 1 end,
      due_at = case when d.outcome in ('retried', 'snoozed') and d.delay > 0 then moment + d.delay * interval '1 second' end,
      ready_at = case when d.outcome in ('retried', 'snoozed') then moment + greatest(d.delay, 0) * interval '1 second' else j.ready_at end,
      suspect = d.outcome = 'rescued' or (d.outcome = 'released' and j.suspect),
      crashes = j.crashes + (d.outcome = 'rescued' and j.suspect and j.started_at is not null)::int,
      errors = howdah.with_error(j.errors, d.error, j.attempt, moment), progress = coalesce(d.progress, j.progress),
      gate = case when j.limits is not null or j.fifo_key is not null then (howdah.keys_of(j.limits, j.fifo_key))[1] end
    from held d where j.ctid = d.at and d.outcome in ('retried', 'snoozed', 'released', 'rescued')
    returning j.id, j.limits is not null and d.outcome = 'released' and d.age is null and not d.begun as unused)
  select array_agg(e.id), array_agg(e.id) filter (where e.ended), array_agg(e.state) filter (where e.ended), array_agg(e.batch) filter (where e.ended),
    array_agg(e.id) filter (where e.unused)
    into written, ended, states, batches, unused
  from (select g.id, true, case g.outcome when 'crashed' then 'dead' else g.outcome end, g.batch, false from gone g
        union all select b.id, false, null, null, b.unused from back b) e(id, ended, state, batch, unused);
  if unused is not null then
    perform howdah.return_tokens(unused);
  end if;
  if ended is not null then
    perform howdah.note_ended(ended, states, batches, true);
  end if;
  return query select unnest(written);
end $$;

-- Writes completions that bring nothing but a result, and returns the ids that it did not write: howdah.ack for the many, at half its cost,
-- because it does not lock a row before it deletes it. So it may meet a row that somebody else holds: then it waits for a moment, writes
-- nothing and returns null, and whoever called it calls howdah.ack. The plan is pinned as the claim's is: from ids to rows by the primary key.
create function howdah.ack_completed(ids bigint[], leases bigint[], results jsonb[], ages float8[], runs float8[], keep boolean)
returns bigint[] language plpgsql
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_nestloop = off set enable_mergejoin = off set lock_timeout = '10ms' as $$
#variable_conflict use_column
declare
  moment  timestamptz := clock_timestamp();
  secrets boolean := exists (select from howdah.kinds k where k.secret <> '{}');
  ended   bigint[];
  batches bigint[];
begin
  with gone as (
    delete from howdah.jobs j
    using unnest(ack_completed.ids, ack_completed.leases, ack_completed.results, ack_completed.ages, ack_completed.runs) as d(id, lease, result, age, run)
    where j.id = any (ack_completed.ids) and j.id = d.id and j.lease = d.lease
    returning j.*, d.result, d.run, least(moment, greatest(j.claimed_at, coalesce(j.started_at, moment - d.age * interval '1 second'))) as began),
  kept as (
    insert into howdah.job_history (id, queue, kind, payload, priority, attempt, max_attempts, crashes, lease, leased_by, state, result, errors, progress,
      unique_key, subject, headers, batch, fifo_key, limits, retried_from, timeout, created_at, ready_at, claimed_at, started_at, finished_at)
    select g.id, g.queue, g.kind, case when secrets then howdah.without_secrets(g.kind, g.payload) else g.payload end,
      g.priority, g.attempt, g.max_attempts, g.crashes, g.lease, g.leased_by, 'completed', g.result, g.errors, g.progress,
      g.unique_key, g.subject, g.headers, g.batch, g.fifo_key, g.limits, g.retried_from, g.timeout,
      least(g.created_at, moment), g.ready_at, least(g.claimed_at, moment),    -- nothing later than this moment, as in howdah.ack
      g.began, greatest(g.began, least(moment, g.began + g.run * interval '1 second'))
    from gone g where ack_completed.keep)
  select array_agg(g.id), array_agg(g.batch) into ended, batches from gone g;
  if ended is not null then
    perform howdah.note_ended(ended, array_fill('completed'::text, array[cardinality(ended)]), batches, true);
  end if;
  if cardinality(ended) = cardinality(ack_completed.ids) then
    return '{}';
  end if;
  return array(select d.id from unnest(ack_completed.ids) d(id) where ended is null or d.id <> all (ended));
exception when lock_not_available then             -- caught here, or the server's log would tell of each
  return null;
end $$;

-- What became of acks that howdah.ack did not write: busy (try again), done (an earlier try wrote it) or lost. With no
-- history kept, an ack that was sent before and is now nowhere counts as done.
create function howdah.ack_fate(ids bigint[], leases bigint[], sent_before boolean[], keep boolean)
returns table (id bigint, fate text) language sql stable
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
select a.id,
  case when j.lease = a.lease then 'busy'
       when j.last_lease = a.lease then 'done'
       when j.id is null and exists (select from howdah.job_history h where h.id = a.id and h.lease = a.lease) then 'done'
       when j.id is null and not keep and a.sent_before then 'done'
       else 'lost' end
from unnest(ids, leases, sent_before) as a(id, lease, sent_before)
left join lateral (select k.id, k.lease, k.last_lease from howdah.jobs k where k.id = a.id limit 1) j on true $$;

-- What steps of a job gave so far; no row if the lease is not the current one, one without a name if there is nothing.
create function howdah.steps_of(job_id bigint, lease bigint) returns table (name text, result jsonb) language sql stable
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
select s.name, s.result from howdah.jobs j left join lateral (
  select k.name, k.result from howdah.steps k where k.job_id = steps_of.job_id offset 0) s on true
where j.id = steps_of.job_id and j.lease = steps_of.lease $$;

-- Writes that the handlers of these attempts started agos[i] seconds ago; gives the ids that it wrote, as howdah.ack does.
create function howdah.note_started(ids bigint[], leases bigint[], agos float8[]) returns setof bigint language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
begin
  return query
  with held as materialized (
    select locked.at, t.ago from unnest(note_started.ids, note_started.leases, note_started.agos) as t(id, lease, ago) cross join lateral (
      select j.ctid as at from howdah.jobs j where j.id = t.id and j.lease = t.lease for update skip locked) locked)
  update howdah.jobs j
  set started_at = coalesce(j.started_at, greatest(j.claimed_at, clock_timestamp() - held.ago * interval '1 second'))
  from held where j.ctid = held.at
  returning j.id;
end $$;

-- Writes how far the handlers of these attempts have come; gives the ids that it wrote, as howdah.ack does.
create function howdah.note_progress(ids bigint[], leases bigint[], progresses jsonb[]) returns setof bigint language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
begin
  return query
  with held as materialized (
    select locked.at, t.progress from unnest(note_progress.ids, note_progress.leases, note_progress.progresses) as t(id, lease, progress) cross join lateral (
      select j.ctid as at from howdah.jobs j where j.id = t.id and j.lease = t.lease for update skip locked) locked)
  update howdah.jobs j
  set progress = held.progress, progressed_at = greatest(j.claimed_at, clock_timestamp())
  from held where j.ctid = held.at
  returning j.id;
end $$;

-- Leaves to the rescue these jobs, which a worker holds and knows nothing of: they become those of a worker that has left. Gives their ids; a
-- row that somebody locks this moment is passed over. Touches no indexed column.
create function howdah.forsake(worker bigint, ids bigint[], leases bigint[]) returns setof bigint language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
begin
  return query
  with lost as materialized (
    select one.at from unnest(forsake.ids, forsake.leases) as t(id, lease) cross join lateral (
      select j.ctid as at from howdah.jobs j where j.id = t.id and j.lease = t.lease and j.leased_by = forsake.worker for update skip locked) one),
  ghost as (
    insert into howdah.workers (name, version, ttl, queues, kinds, started_at, beat_at)
    select w.name, w.version, interval '0', '{}', '{}', 'epoch', 'epoch' from howdah.workers w where w.id = forsake.worker and exists (select from lost)
    returning id)
  update howdah.jobs j set leased_by = ghost.id from lost, ghost where j.ctid = lost.at
  returning j.id;
end $$;

-- Completes one job inside the caller's transaction, so that what the caller wrote and the completion commit together.
-- Call it last: the job's row is locked from here to the commit. Refused (JB008) if the lease is not the current one.
-- `run` is how long the work took, in seconds; null: since the claim.
create function howdah.complete(job_id bigint, lease bigint, result jsonb default null, run float8 default null,
  progress jsonb default null) returns text
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  keep boolean := coalesce(current_setting('howdah.keep_history', true), 'on') <> 'off';
begin
  -- This waits, unlike the ack: only the engine locks a running row, and only for a moment.
  select coalesce(run, extract(epoch from clock_timestamp() - j.claimed_at)) into run
    from howdah.jobs j where j.id = job_id and j.lease = complete.lease for update;
  if found then
    perform howdah.ack(array[job_id], array[complete.lease], array['completed'], array[result], array[null::jsonb], array[null::float8], array[run], array[run],
      array[progress], keep);
    return 'completed';
  elsif exists (select from howdah.job_history h where h.id = job_id and h.lease = complete.lease and h.state = 'completed') then
    return 'completed';                            -- a repeat after a lost reply
  end if;
  perform howdah.refuse(array['JB008', format('job %s is not held under lease %s any more', job_id, complete.lease), 'stop working on it: somebody else has it, or it has ended']);
end $$;

-- Makes due jobs claimable, at most `count`, and tells how many it made and in how many seconds the next is due.
-- now() and not clock_timestamp(): a volatile bound cannot be an index condition. The plan is pinned as the claim's is.
create function howdah.promote(count int, out promoted int, out next_in float8) language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
declare
  queues text[];
begin
  with due as materialized (
    select j.ctid as at from howdah.jobs j where j.due_at <= now() order by j.due_at limit promote.count for update skip locked),
  ready as (
    update howdah.jobs j set due_at = null, ready_at = greatest(j.ready_at, j.due_at) from due where j.ctid = due.at returning j.queue)
  select count(*), array_agg(distinct r.queue) into promoted, queues from ready r;
  if promoted > 0 then
    perform howdah.wake(q.name) from unnest(queues) q(name);
  end if;
  if promoted = promote.count then
    next_in := 0;                                  -- there may be more
  else
    -- What is due and was passed over is held by somebody's open transaction: waiting for it would be waiting in a circle.
    select extract(epoch from j.due_at - clock_timestamp()) into next_in
      from howdah.jobs j where j.due_at > now() and j.due_at < 'infinity' order by j.due_at limit 1;
  end if;
end $$;

-- Makes one job of all visible events of each ripe key, and tells how many jobs it made and in how many seconds the next
-- key is ripe. One at a time: of two at once, one could take a key's old events and the other its new one, which would
-- be two runs in one delay. The lock is taken in a statement of its own, so that the next one sees what the last did.
-- The table is mostly empty when its statistics are taken, so the plan is pinned: from the keys to their events by index,
-- from there by place. A join would compare all with all (20 s for 20,000 events).
create function howdah.coalesce_events(count int, out made int, out next_in float8) language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
declare
  queues text[];
begin
  made := 0;
  if not howdah.try_lock(7316042, 1) then return; end if;
  with ripe as materialized (
    select e.kind, e.key from howdah.events e where e.due_at <= now() group by e.kind, e.key
    order by min(e.due_at) limit coalesce_events.count),
  gone as (
    delete from howdah.events e
    where e.ctid = any (array(select one.at from ripe r cross join lateral (
      select s.ctid as at from howdah.events s where s.kind = r.kind and s.key = r.key offset 0) one))
    returning e.*),
  last as (
    select distinct on (g.kind, g.key) g.*, (min(g.due_at) over (partition by g.kind, g.key)) as ripe_at
    from gone g order by g.kind, g.key, g.id desc),
  job as (
    insert into howdah.jobs (queue, kind, payload, priority, max_attempts, timeout, subject, ready_at, limits)
    select coalesce(l.queue, k.queue, 'default'), l.kind, l.payload, coalesce(l.priority, k.priority, 0), coalesce(k.max_attempts, 3), k.timeout, l.subject, l.ripe_at,
      case when coalesce(k.limited, (select s.limited from howdah.settings s)) then howdah.with_standing(null, l.kind, coalesce(l.queue, k.queue, 'default')) end
    from last l left join howdah.kinds k on k.name = l.kind order by l.id
    returning queue)
  select count(*), array_agg(distinct j.queue) into made, queues from job j;
  if made > 0 then
    perform howdah.wake(q.name) from unnest(queues) q(name);
  end if;
  select extract(epoch from e.due_at - clock_timestamp()) into next_in from howdah.events e order by e.due_at limit 1;
end $$;

-- A worker says that it lives. No row: it has been taken for dead, its jobs are others'. `leads`: it does the upkeep
-- that is needed once for all workers. `suspects` wait to be run, `signals` to be heard by who holds their jobs.
create function howdah.worker_beat(worker bigint) returns table (leads boolean, suspects boolean, signals boolean) language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
declare
  lease interval;
begin
  -- Not the later of both: after a step back the next beat would be years ahead.
  update howdah.workers w set beat_at = clock_timestamp() where w.id = worker_beat.worker returning w.ttl into lease;
  if not found then return; end if;
  update howdah.leader l set worker = worker_beat.worker, until = clock_timestamp() + lease
    where l.worker = worker_beat.worker or l.until < clock_timestamp() or not exists (select from howdah.workers w where w.id = l.worker);
  leads := found;
  suspects := exists (select from howdah.jobs j where j.due_at is null and j.suspect);
  signals := exists (select from howdah.signals s);
  return next;
end $$;

-- Takes back the jobs of the workers that are dead, at most `count` at once, and removes the worker's row when it holds
-- none any more. A job that had not started comes back unpunished; a suspect whose start was written gets a crash, and
-- with the second it is dead; an at-most-once job that had started is dead. There is no index to go by, on purpose:
-- looking at workers comes first, and only a dead one costs a scan.
-- Beats say who lives only while the clock runs evenly: a step makes all look dead, or the dead alive. The caller, whose own monotonic clock nobody
-- sets, tells what this one should show (`expected`) and for how many seconds it has run `even`ly; null: it vouches for it. Nobody rescues its own jobs:
-- a worker that was frozen, and that nobody took for dead, just beats again.
create function howdah.rescue(count int default 10000, expected timestamptz default null, even float8 default null, rescuer bigint default null)
returns table (worker bigint, name text, rescued int, buried int, beat_age float8)
language plpgsql as $$
#variable_conflict use_variable
declare
  dead howdah.workers;
  mine record;
  -- After an outage of the server, or of the wire, nobody has had time to beat.
  quiet timestamptz := greatest(pg_postmaster_start_time(), (select a.backend_start from pg_stat_get_activity(pg_backend_pid()) a));
begin
  for dead in select w.* from howdah.workers w
              where w.id is distinct from rescuer and (w.beat_at = 'epoch'                                             -- it has left and said so
                 or abs(extract(epoch from clock_timestamp() - w.beat_at)) > extract(epoch from w.ttl)   -- ahead: it died before the clock was set back
                and (quiet < clock_timestamp() - w.ttl or quiet > clock_timestamp())
                and (even is null or even >= extract(epoch from w.ttl) and clock_timestamp() between expected - w.ttl / 3 and expected + w.ttl / 3))
              order by w.id for update skip locked loop
    select array_agg(j.id) as ids, array_agg(j.lease) as leases, array_agg(j.outcome) as outcomes, count(*) as jobs,
           array_agg(case j.outcome when 'crashed' then jsonb_build_object('type', 'WorkerDied', 'message', j.reason) end) as errors
      into mine
      from (select j.id, j.lease,
              case when j.started_at is not null and (j.max_attempts = 1 or (j.suspect and j.crashes + 1 >= 2)) then 'crashed' else 'rescued' end as outcome,
              case when j.max_attempts = 1 then format('worker %s died while it ran, and it may run at most once', dead.name)
                   else format('worker %s died while it ran alone; it has brought down %s workers', dead.name, j.crashes + 1) end as reason
            from howdah.jobs j where j.leased_by = dead.id limit rescue.count) j;
    worker := dead.id; name := dead.name; beat_age := extract(epoch from clock_timestamp() - dead.beat_at);
    rescued := 0; buried := 0;
    if mine.jobs > 0 then
      select count(*) filter (where o.outcome = 'rescued'), count(*) filter (where o.outcome = 'crashed') into rescued, buried
        from howdah.ack(mine.ids, mine.leases, mine.outcomes, array_fill(null::jsonb, array[mine.jobs::int]), mine.errors,
               array_fill(null::float8, array[mine.jobs::int]), array_fill(null::float8, array[mine.jobs::int]), array_fill(null::float8, array[mine.jobs::int]),
               array_fill(null::jsonb, array[mine.jobs::int]), true) a(id)
        join unnest(mine.ids, mine.outcomes) o(id, outcome) on o.id = a.id;
    end if;
    if not exists (select from howdah.jobs j where j.leased_by = dead.id) then
      delete from howdah.workers w where w.id = dead.id;
    end if;
    return next;
  end loop;
  if found then
    perform howdah.wake_all(), howdah.notify('howdah_control', 'suspects');
  end if;
end $$;

-- Makes the partitions of history from today to `ahead` days on, and tells how many days from today are ready.
-- Create and attach, never `create … partition of`: attaching lets reads and writes of the parent go on.
create function howdah.make_partitions(ahead int default 14) returns int
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp set lock_timeout = '200ms' as $$
declare
  today date := (clock_timestamp() at time zone 'UTC')::date;
  day   date;
  name  text;
begin
  begin
    perform howdah.take_lock(7316042, 2);     -- two makers would wait for each other's names
  exception when lock_not_available then           -- the other one's work counts once it is committed
    return (select coalesce(min(n), ahead + 1) from generate_series(0, ahead) n
            where to_regclass(format('howdah.job_history_%s', to_char(today + n, 'YYYYMMDD'))) is null);
  end;
  for day in select today + n from generate_series(0, ahead) n loop
    name := format('job_history_%s', to_char(day, 'YYYYMMDD'));
    continue when to_regclass(format('howdah.%I', name)) is not null;
    begin
      execute format('create table howdah.%I (like howdah.job_history including all)', name);
      execute format('alter table howdah.job_history attach partition howdah.%I for values from (%L) to (%L)',
                     name, to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00', to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00');
    exception when lock_not_available then
      return day - today;                          -- tried again later; there are days in hand
    end;
  end loop;
  return ahead + 1;
end $$;

-- Drops the days of history that are older than `days` (1 or more), with the steps of jobs that ended before, and tells which. Detach, then drop: dropping an attached
-- partition would hold the parent's lock while the files go.
create function howdah.drop_partitions(days int) returns setof text
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp set lock_timeout = '200ms' as $$
declare
  oldest text := format('job_history_%s', to_char((clock_timestamp() at time zone 'UTC')::date - days, 'YYYYMMDD'));
  name   text;
begin
  if days < 1 then
    perform howdah.refuse(array['JB002', format('days is %s', days), 'at least 1: today is being written']);
  end if;
  -- Before the days: with one of those detached, every ack waits until this has committed.
  begin
    delete from howdah.steps s where s.created_at < clock_timestamp() - days * interval '1 day'
      and not exists (select from howdah.jobs j where j.id = s.job_id);
  exception when lock_not_available then
    null;                                          -- somebody has the whole table, or one of these rows
  end;
  for name in select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
              where i.inhparent = 'howdah.job_history'::regclass and c.relname < oldest collate "C" order by c.relname loop
    begin
      execute format('alter table howdah.job_history detach partition howdah.%I', name);
      execute format('drop table howdah.%I', name);
      return next name;
    exception when lock_not_available then
      return;                                      -- somebody reads history; tried again later
    end;
  end loop;
end $$;

select howdah.make_partitions();
