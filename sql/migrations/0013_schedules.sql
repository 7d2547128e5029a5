-- Schedules: jobs that are made by themselves, at the slots of a cron expression in a time zone.
--
-- The database knows what is due, decides who may fire it and makes the jobs; when slots are is computed by the workers
-- (schedules.py), because PostgreSQL reads no cron expressions. A worker reads a row, computes the slots that have come since
-- done_until, and hands them to howdah.fire_schedule with the row's version. That fires only if the version is still the one that was
-- read, and makes the jobs and moves done_until in one commit: so each slot is dealt with exactly once, whoever dies when.

create table howdah.schedules (
  name        text        primary key check (length(name) between 1 and 200 and name !~ '[[:cntrl:]]'),
  kind        text        not null,
  payload     jsonb       not null default '{}' check (jsonb_typeof(payload) = 'object'),
  options     jsonb       not null default '{}',           -- further arguments of enqueue, by name
  cron        text        not null,
  time_zone   text        not null default 'UTC',
  missed      text        not null default 'one'   check (missed in ('skip', 'one', 'all')),     -- what slots become that nobody saw in time
  overlap     text        not null default 'allow' check (overlap in ('allow', 'skip')),         -- skip: no second job while one lives
  jitter      interval    not null default '0'     check (jitter >= '0'),
  declared    boolean     not null default false,          -- by a handler of the kind of its name; else made by hand
  version     bigint      not null default 0,              -- moves with every change, and is what firing is fenced by
  created_at  timestamptz not null default clock_timestamp(),
  done_until  timestamptz not null default clock_timestamp(),   -- slots up to here are fired or passed over; only moves forward
  next_at     timestamptz,                                 -- the first slot after that; null: no worker has computed it yet
  paused_at   timestamptz,
  paused_by   text,
  problem     text,                                        -- why it does not fire; no slot is given up for it
  problem_at  timestamptz,                                 -- since when; it is tried again every minute
  last_slot   timestamptz,
  last_at     timestamptz,                                 -- when last_slot was fired
  last_job    bigint,
  fired       bigint      not null default 0,              -- jobs made
  missed_slots bigint     not null default 0,              -- slots that came while nobody looked and got no job, as `missed` says
  overlapped  bigint      not null default 0               -- slots that got no job because one lived
) with (fillfactor = 50);

-- What everybody may read of schedules. `overdue`: for how long it ought to have fired and has not.
create view howdah.schedule_status as
select s.name, s.kind, howdah.masked(s.kind, s.payload) as payload, s.options, s.cron, s.time_zone, s.missed, s.overlap, s.jitter, s.declared,
       s.created_at, s.next_at, s.paused_at, s.paused_by, s.problem, s.last_slot, s.last_at, s.last_job, s.fired, s.missed_slots, s.overlapped,
       case when s.paused_at is null and coalesce(s.next_at, s.done_until) < statement_timestamp()
            then statement_timestamp() - coalesce(s.next_at, s.done_until) end as overdue
from howdah.schedules s;

-- Makes a schedule, or changes the one of this name, and tells whether it is new. Its slots begin now; a change of anything but expression
-- and zone leaves them where they are. The workers compute when they are, at once, and note as `problem` what they cannot read.
create function howdah.schedule(name text, cron text, kind text, payload jsonb default '{}', time_zone text default 'UTC',
  missed text default 'one', overlap text default 'allow', jitter interval default '0', queue text default null, priority int default null,
  max_attempts int default null, timeout interval default null, subject text default null, limits text[] default null,
  fifo_key text default null, headers jsonb default null)
returns boolean language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
#variable_conflict use_variable
declare
  problem text[];
  known   howdah.kinds;
  given   jsonb;
  made    boolean;
begin
  problem := case
    when name is null or length(name) not between 1 and 200 or name ~ '[[:cntrl:]]'
      then array['JB002', format('name is %L', left(name, 200)), 'one to 200 characters, none of them a control character']
    when cron is null or array_length(regexp_split_to_array(trim(cron), '\s+'), 1) not in (5, 6)
      then array['JB002', format('cron is %L', left(cron, 200)), 'minute, hour, day of month, month and day of week, such as ''0 3 * * *''']
    when not exists (select from pg_timezone_names z where z.name = time_zone)
      then array['JB002', format('time_zone is %L', left(time_zone, 200)), 'a name of pg_timezone_names, such as Europe/Berlin or UTC']
    when missed is null or missed not in ('skip', 'one', 'all')
      then array['JB002', format('missed is %L', missed), 'skip, one or all']
    when overlap is null or overlap not in ('allow', 'skip')
      then array['JB002', format('overlap is %L', overlap), 'allow or skip']
    when jitter is null or jitter < interval '0' or jitter > interval '1 day'
      then array['JB002', format('jitter is %s', coalesce(jitter::text, 'null')), 'from nothing to a day']
    else howdah.argument_problem(kind, payload, queue, priority, null, null, max_attempts, timeout, null, 'skip', subject, null, null,
                                 limits, fifo_key, null, headers) end;
  if problem is not null then perform howdah.refuse(problem); end if;
  select k.* into known from howdah.kinds k where k.name = kind;
  if not found then
    if (select s.strict_kinds from howdah.settings s) then
      perform howdah.refuse(array['JB004', format('kind %L was never registered', kind), 'run howdah register, or start a worker that has it']);
    end if;
    raise notice 'howdah: kind % was never registered', quote_literal(kind);
  elsif howdah.field_problem(known.fields, payload, interval '10 minutes') is not null then
    perform howdah.refuse(array['JB003', format('%s: %s', kind, howdah.field_problem(known.fields, payload, interval '10 minutes')), 'see the schema in howdah.kinds']);
  end if;
  given := jsonb_strip_nulls(jsonb_build_object('queue', queue, 'priority', priority, 'max_attempts', max_attempts, 'timeout', timeout,
    'subject', subject, 'limits', limits, 'fifo_key', fifo_key, 'headers', headers));

  insert into howdah.schedules as s (name, kind, payload, options, cron, time_zone, missed, overlap, jitter)
  values (name, kind, payload, given, trim(cron), time_zone, missed, overlap, jitter)
  on conflict on constraint schedules_pkey do update set
    kind = excluded.kind, payload = excluded.payload, options = excluded.options, cron = excluded.cron, time_zone = excluded.time_zone,
    missed = excluded.missed, overlap = excluded.overlap, jitter = excluded.jitter, version = s.version + 1, problem = null, problem_at = null,
    done_until = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.done_until else greatest(s.done_until, clock_timestamp()) end,
    next_at = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.next_at end
  where not s.declared
  returning s.version = 0 into made;
  if made is null then
    perform howdah.refuse(array['JB007', format('schedule %L is declared by a handler', name), 'choose another name, or change the declaration']);
  end if;
  perform howdah.notify('howdah_control', 'due');
  return made;
end $$;

-- Takes a schedule away; its jobs stay. One that is declared stays as long as a living worker has its handler.
create function howdah.unschedule(name text) returns void
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
declare
  mine howdah.schedules;
begin
  select s.* into mine from howdah.schedules s where s.name = unschedule.name;
  if not found then
    perform howdah.refuse(array['JB007', format('there is no schedule %L', unschedule.name), 'howdah schedule list names them']);
  elsif mine.declared and exists (select from howdah.workers w where mine.kind = any (w.kinds) and w.beat_at > clock_timestamp() - w.ttl) then
    perform howdah.refuse(array['JB007', format('schedule %L is declared by a handler that a living worker has', unschedule.name),
      'take it out of the declaration, or pause it']);
  end if;
  delete from howdah.schedules s where s.name = unschedule.name;
end $$;

-- Lets a schedule fire no more, whatever restarts; tells whether it was not paused before. Its jobs run on.
create function howdah.pause_schedule(name text, by text default null) returns boolean
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
declare
  was timestamptz;
begin
  select s.paused_at into was from howdah.schedules s where s.name = pause_schedule.name for update;
  if not found then
    perform howdah.refuse(array['JB007', format('there is no schedule %L', pause_schedule.name), 'howdah schedule list names them']);
  end if;
  update howdah.schedules s set paused_at = clock_timestamp(), paused_by = pause_schedule.by, version = s.version + 1
    where s.name = pause_schedule.name and s.paused_at is null;
  return was is null;
end $$;

-- Lets a schedule fire again, from the next slot on: those that came while it was paused are not missed. Tells whether it was paused.
create function howdah.resume_schedule(name text) returns boolean
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
declare
  was timestamptz;
begin
  select s.paused_at into was from howdah.schedules s where s.name = resume_schedule.name for update;
  if not found then
    perform howdah.refuse(array['JB007', format('there is no schedule %L', resume_schedule.name), 'howdah schedule list names them']);
  end if;
  update howdah.schedules s set paused_at = null, paused_by = null, version = s.version + 1, problem = null, problem_at = null, next_at = null,
    done_until = greatest(s.done_until, clock_timestamp())
    where s.name = resume_schedule.name and s.paused_at is not null;
  perform howdah.notify('howdah_control', 'due');
  return was is not null;
end $$;

-- Keeps the schedules that handlers declare, after howdah.register has taken the same kinds: {"schedule": {"cron", "payload", "time_zone",
-- "missed", "overlap", "jitter" (seconds)}} in a kind's object; a kind without one has none any more. Of two revisions the newer one's
-- word holds. What was not changed goes on from where it was, and a pause stays. Where one was made by hand under the kind's name that one
-- goes on and the declared one is not used; gives those names.
create function howdah.declare_schedules(kinds jsonb, revision bigint) returns text[]
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
declare
  taken text[];
begin
  if exists (select from howdah.schedules s where s.declared) or kinds @? '$[*].schedule.cron' then
    with given as (
      select g.name, g.schedule from jsonb_to_recordset(declare_schedules.kinds) as g(name text, schedule jsonb)
      join howdah.kinds k on k.name = g.name and k.revision = declare_schedules.revision)
    delete from howdah.schedules s where s.declared and s.name in (select g.name from given g where g.schedule ->> 'cron' is null);
    with given as (
      select g.name, d.* from jsonb_to_recordset(declare_schedules.kinds) as g(name text, schedule jsonb)
      join howdah.kinds k on k.name = g.name and k.revision = declare_schedules.revision
      cross join lateral jsonb_to_record(g.schedule) as d(cron text, payload jsonb, time_zone text, missed text, overlap text, jitter float8)
      where g.schedule ->> 'cron' is not null),
    kept as (
      insert into howdah.schedules as s (name, kind, payload, cron, time_zone, missed, overlap, jitter, declared)
      select g.name, g.name, coalesce(g.payload, '{}'), g.cron, coalesce(g.time_zone, 'UTC'), coalesce(g.missed, 'one'), coalesce(g.overlap, 'allow'),
             coalesce(g.jitter, 0) * interval '1 second', true
      from given g order by g.name
      on conflict (name) do update set
        payload = excluded.payload, cron = excluded.cron, time_zone = excluded.time_zone, missed = excluded.missed, overlap = excluded.overlap,
        jitter = excluded.jitter, version = s.version + 1, problem = null, problem_at = null,
        done_until = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.done_until else greatest(s.done_until, clock_timestamp()) end,
        next_at = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.next_at end
      where s.declared and (s.payload, s.cron, s.time_zone, s.missed, s.overlap, s.jitter)
        is distinct from (excluded.payload, excluded.cron, excluded.time_zone, excluded.missed, excluded.overlap, excluded.jitter)
      returning 1)
    select array_agg(g.name) into taken from given g join howdah.schedules s on s.name = g.name and not s.declared;
    perform howdah.notify('howdah_control', 'due');
  end if;
  return coalesce(taken, '{}');
end $$;

-- Fires a schedule as it was read under `version`: a job for each of `slots`, `delays` seconds after now, and everything up to `until` is dealt
-- with. Gives how many jobs were made, how many slots were passed over because a job lives, and what the database refused; no row:
-- somebody else changed or fired it meanwhile, or holds it this moment. What is refused stays due, and nothing is lost.
create function howdah.fire_schedule(name text, version bigint, slots timestamptz[], delays float8[], missed bigint, until timestamptz, next_at timestamptz)
returns table (made int, overlapped int, refusal text) language plpgsql as $$
#variable_conflict use_column
declare
  mine howdah.schedules;
  key  text := 'schedule:' || fire_schedule.name;
  last bigint;
begin
  -- Passed over if it is locked: somebody's transaction that changes it may stay open for long.
  select s.* into mine from howdah.schedules s
    where s.name = fire_schedule.name and s.version = fire_schedule.version and s.paused_at is null for update skip locked;
  if not found then return; end if;
  made := 0;
  overlapped := 0;
  begin
    if mine.overlap = 'skip' and slots <> '{}' then
      overlapped := cardinality(slots);
      -- Asked first: an insert would wait for whoever is about to end that job.
      if exists (select from howdah.jobs j where j.unique_key = key) or exists (select from howdah.jobs j where j.id = mine.last_job) then
        slots := '{}';
      else
        slots := slots[overlapped:overlapped];
        delays := delays[overlapped:overlapped];
      end if;
    end if;
    if slots <> '{}' then
      select count(*), max(e.id) into made, last
      from howdah.enqueue_many((
        select jsonb_agg(mine.options || jsonb_build_object('kind', mine.kind, 'payload', mine.payload,
            'headers', coalesce(mine.options -> 'headers', '{}') || jsonb_build_object('schedule', jsonb_build_object('name', mine.name,
              'slot', to_char(g.slot at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))))
          || case when g.delay > 0 then jsonb_build_object('delay', format('%s seconds', g.delay)) else '{}' end
          || case when mine.overlap = 'skip' then jsonb_build_object('unique_key', key) else '{}' end order by g.slot)
        from unnest(slots, delays) g(slot, delay))) e
      where e.created;
    end if;
    overlapped := case when mine.overlap = 'skip' then overlapped - made else 0 end;
  exception when others then
    if sqlstate !~ '^(JB|22|23)' then raise; end if;
    refusal := regexp_replace(sqlerrm, '^howdah: (job \d+: )?', '');
    made := 0;
    overlapped := 0;
  end;
  if refusal is not null then
    update howdah.schedules s set problem = refusal, problem_at = clock_timestamp() where s.name = mine.name;
  else
    update howdah.schedules s set version = s.version + 1, problem = null, problem_at = null,
      done_until = greatest(s.done_until, fire_schedule.until), next_at = fire_schedule.next_at,
      last_slot = case when made > 0 then slots[cardinality(slots)] else s.last_slot end, last_at = case when made > 0 then clock_timestamp() else s.last_at end,
      last_job = coalesce(last, s.last_job), fired = s.fired + made, missed_slots = s.missed_slots + fire_schedule.missed, overlapped = s.overlapped + fire_schedule.overlapped
    where s.name = mine.name;
  end if;
  return next;
end $$;
