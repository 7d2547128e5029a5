-- Limits: how many jobs of a key may run at once, and how many may start in a second, exact over all workers; and FIFO keys.
--
-- A job that names limits, or has a fifo_key, stands in a line and not in the claim index: its row says at which key it waits
-- (`gate`), and jobs_gate is all the lines, each in claim order. So nobody who looks for other work passes over it.
-- Where there may be something to take is said by rows of howdah.openings, which are only ever appended, by whatever may have made room
-- or brought a job: no enqueue and no ack waits for another. howdah.claim_limited goes by them; it takes each key's lock without
-- waiting, counts what holds the key, and takes from the head of its line for as long as all of the job's keys have room. One of
-- them has none: the job goes to that one's line. A key without room leaves no opening behind, until a hold ends or a token is due.
--   lock order: openings (skip locked), keys (advisory, tried), jobs (skip locked). Nobody waits, so nobody waits in a circle.
--
-- A job in hand has a row of howdah.holds for each of its keys. It goes with the lease, in the same commit, whoever writes that: the
-- trigger sees to it. So the slots of a dead worker come back with the rescue, and never earlier. A FIFO key is held until the job has ended.

-- The limits that a job names, and those that hold for its kind and its queue.
create function howdah.with_standing(limits text[], kind text, queue text) returns text[] language sql stable as $$
select case when s.names is null then limits else coalesce(limits, '{}') || s.names end
from (select array_agg(k.name) as names from unnest(array['queue:' || queue, 'kind:' || kind]) k(name)
      where (howdah.limit_for(k.name)).name is not null and k.name <> all (coalesce(limits, '{}'))) s $$;

-- All keys of a job, the one that it is to wait at first in front.
create function howdah.keys_of(limits text[], fifo_key text) returns text[] language sql immutable parallel safe as $$
select case when fifo_key is null then limits else array['fifo:' || fifo_key] || coalesce(limits, '{}') end $$;

-- Says that jobs of a queue may be found at a key. A row of one's own transaction need not be doubled; another's may be gone before we commit.
create function howdah.open(key text, queue text) returns void language sql as $$
insert into howdah.openings (key, queue)
select open.key, open.queue where not exists (
  select from howdah.openings o where o.key = open.key and o.queue = open.queue and o.tokens = 0 and o.xmin = pg_current_xact_id()::xid) $$;

-- A new job with keys begins in the line of the first.
create function howdah.take_gate() returns trigger language plpgsql as $$
begin
  new.gate := case when new.fifo_key is null then new.limits[1] else 'fifo:' || new.fifo_key end;   -- howdah.keys_of, for many at once
  return new;
end $$;
create trigger take_gate before insert on howdah.jobs for each row when (new.limits is not null or new.fifo_key is not null)
  execute function howdah.take_gate();

-- Opens the line of a new job. Called for each of very many: one opening serves all that come in one transaction.
create function howdah.open_gate() returns trigger language plpgsql as $$
begin
  if not exists (select from howdah.openings o where o.key = new.gate and o.queue = new.queue and o.tokens = 0 and o.xmin = pg_current_xact_id()::xid) then
    insert into howdah.openings (key, queue) values (new.gate, new.queue);
    perform howdah.notify('howdah_control', 'limits');
  end if;
  return null;
end $$;

-- Keeps holds and openings true, whatever statement changes a job that is there. Jobs without keys pay a look at their row, and no call.
create function howdah.mind_gates() returns trigger language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
declare
  key   text;
  stirs boolean := false;
begin
  -- Whose lease has ended holds nothing any more, but for a FIFO key: that one until its own end.
  if tg_op = 'DELETE' or tg_op = 'UPDATE' and old.lease is not null and new.lease is null then
    for key in delete from howdah.holds h where h.job_id = old.id and (tg_op = 'DELETE' or not h.stays) returning h.key loop
      perform howdah.open(key, '');
      stirs := stirs or exists (select from howdah.jobs j where j.gate = key and j.due_at is null and not j.suspect)
        or exists (select from howdah.jobs j where j.due_at is null and j.suspect and j.gate is not null);
    end loop;
  end if;
  -- Those behind it in its FIFO line may go, if it stood there.
  if old.fifo_key is not null and old.due_at is null and (tg_op = 'DELETE' or new.due_at is not null) then
    perform howdah.open('fifo:' || old.fifo_key, '');
    stirs := stirs or exists (select from howdah.jobs j where j.fifo_key = old.fifo_key and j.due_at is null);
  end if;
  if tg_op <> 'DELETE' and new.gate is not null and new.due_at is null and new.lease is null
     and (old.gate is distinct from new.gate or old.due_at is not null or old.suspect <> new.suspect) then
    perform howdah.open(new.gate, new.queue);
    stirs := true;
  end if;
  if stirs then
    perform howdah.notify('howdah_control', 'limits');
    if exists (select from howdah.jobs j where j.due_at is null and j.suspect and j.gate is not null) then
      perform howdah.notify('howdah_control', 'suspects');
    end if;
  end if;
  return null;
end $$;
create trigger open_gate after insert on howdah.jobs for each row when (new.gate is not null) execute function howdah.open_gate();
create trigger mind_gate after update on howdah.jobs for each row when (new.limits is not null or new.fifo_key is not null)
  execute function howdah.mind_gates();
create trigger mind_old_gate after delete on howdah.jobs for each row when (old.limits is not null or old.fifo_key is not null)
  execute function howdah.mind_gates();

-- Whether a job may take all of its keys now. Takes them and gives null; or gives the key that has no room, and the time from which it
-- may have some, null if that depends on others; or gives '' if somebody else is at one of them this moment.
-- Of the key that is `sure` the caller has the lock, and has counted. The keys' locks are held to the end of the transaction, which must be near. What others took before is seen by the statements behind the lock.
create function howdah.acquire(job_id bigint, keys text[], sure text default null, out blocked text, out open_at timestamptz) language plpgsql as $$
#variable_conflict use_variable
declare
  moment timestamptz;
  name   text;
  rule   howdah.limits;
  rules  howdah.limits[] := '{}';
  fulls  timestamptz[] := '{}';
  filled   timestamptz;
begin
  foreach name in array keys loop
    if not howdah.try_lock(7316043, hashtext(name)) then
      blocked := '';
      return;
    end if;
  end loop;
  moment := clock_timestamp();
  foreach name in array keys loop
    filled := null;
    if starts_with(name, 'fifo:') then
      rule := null;
      if not exists (select from howdah.holds h where h.key = name and h.job_id = acquire.job_id) and (
           exists (select from howdah.holds h where h.key = name)
           or exists (select from howdah.jobs j where j.fifo_key = substr(name, 6) and j.due_at is null and j.id < job_id)) then
        blocked := name;
        return;
      end if;
    else
      rule := howdah.limit_for(name);
      if name is distinct from sure and (select count(*) from howdah.holds h where h.key = name) >= rule.concurrency then
        blocked := name;
        return;
      end if;
      if rule.rate is not null then
        -- Never further away than an empty bucket: the clock may have been set back, or the rate raised. Written down, or it would be empty
        -- again at the next look.
        update howdah.buckets b set full_at = moment + rule.burst / rule.rate * interval '1 second'
          where b.key = name and b.full_at > moment + rule.burst / rule.rate * interval '1 second';
        select b.full_at into filled from howdah.buckets b where b.key = name;
        filled := greatest(filled, moment);
        if filled > moment + (rule.burst - 1) / rule.rate * interval '1 second' then
          blocked := name;
          open_at := filled - (rule.burst - 1) / rule.rate * interval '1 second';
          return;
        end if;
      end if;
    end if;
    rules := rules || rule;
    fulls := fulls || filled;
  end loop;
  for place in 1 .. cardinality(keys) loop
    insert into howdah.holds (key, job_id, stays) values (keys[place], job_id, starts_with(keys[place], 'fifo:'))
      on conflict on constraint holds_pkey do nothing;
    if fulls[place] is not null then
      insert into howdah.buckets as b (key, full_at) values (keys[place], fulls[place] + 1 / (rules[place]).rate * interval '1 second')
        on conflict on constraint buckets_pkey do update set full_at = excluded.full_at;
    end if;
  end loop;
end $$;

-- Takes jobs that have keys, of each queue at most its room, all of whose keys have room, and those for which a line must be left that is full
-- go to that line. `next_in`, on every row, is in how many seconds to look again (null: when told), and `more` whether a queue
-- without room had more to give; with nothing taken there is one row whose id is null. For whoever can run the jobs at once: a
-- job in hand holds its keys. The locks of keys last as long as the transaction, and what was committed a moment ago must be seen.
create function howdah.claim_limited(worker bigint, lease bigint, kinds text[], queues text[], rooms int[])
returns table (id bigint, queue text, kind text, payload jsonb, priority smallint, attempt smallint, max_attempts smallint, timeout float8,
  waited float8, expires_in float8, subject text, headers jsonb, created_at timestamptz, crashes smallint, batch bigint, next_in float8, more boolean)
language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
  -- How many openings one call looks at, and how many jobs it sends to other lines: a claim stays short, however much waits.
  looks   constant int := 100;
  turns   int := 100;
  served  text[];
  free    int[];
  taken   bigint[] := '{}';
  busy    boolean := false;
  lanes   text[];
  lane    text;
  place   int;
  room    bigint;
  rank    int;
  past    bigint;
  head    bigint;
  spot    record;
  job     record;
  blocked text;
  until   timestamptz;
  gone    howdah.jobs;
  again   timestamptz;
  shut    boolean;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    perform howdah.refuse(array['JB002', 'howdah.claim_limited must see what has just been committed', 'call it at isolation level read committed']);
  end if;
  select array_agg(w.queue), array_agg(w.room) into served, free from unnest(claim_limited.queues, claim_limited.rooms) w(queue, room)
    where not exists (select from howdah.queues q where q.name = w.queue and q.paused_at is not null);

  for spot in
    select o.key, array_agg(o.id) as ids, array_agg(distinct o.queue) as queues, sum(o.tokens)::int as tokens
    from (select q.queue from unnest(served, free) q(queue, room) where q.room > 0 union all select '') q
    cross join lateral (
      select o.* from howdah.openings o where o.queue = q.queue and o.open_at <= clock_timestamp() order by o.open_at limit looks for update skip locked) o
    group by o.key order by min(o.open_at)
  loop
    if not howdah.try_lock(7316043, hashtext(spot.key)) then
      busy := true;
      continue;
    end if;
    delete from howdah.openings o where o.id = any (spot.ids);
    if spot.tokens > 0 then
      update howdah.buckets b set full_at = b.full_at - spot.tokens / l.rate * interval '1 second'
        from howdah.limit_for(spot.key) l where b.key = spot.key and l.rate is not null;
    end if;

    head := null;
    room := null;
    if starts_with(spot.key, 'fifo:') then
      head := coalesce((select h.job_id from howdah.holds h where h.key = spot.key limit 1),
        (select j.id from howdah.jobs j where j.fifo_key = substr(spot.key, 6) and j.due_at is null order by j.id limit 1));
      lanes := array(select j.queue from howdah.jobs j where j.id = head and j.gate = spot.key and j.due_at is null and not j.suspect);
    elsif '' = any (spot.queues) then
      lanes := howdah.lanes_at(spot.key);
    else
      lanes := spot.queues;
    end if;
    if head is null then
      -- Counted once, for all that it gives: nobody else can take meanwhile, and what is freed opens it again.
      select l.concurrency - (select count(*) from howdah.holds h where h.key = spot.key) into room from howdah.limit_for(spot.key) l
        where l.concurrency is not null;
    end if;

    shut := false;
    until := null;
    foreach lane in array lanes loop
      place := array_position(served, lane);
      again := null;
      rank := -1;
      past := 0;
      loop
        if place is null or free[place] <= 0 or turns <= 0 then
          again := clock_timestamp();               -- for whoever serves that queue, or has room again
          exit;
        end if;
        select j.id, j.limits, j.fifo_key, j.expires_at <= clock_timestamp() as expired, 10 - j.priority as rank into job from howdah.jobs j
          where j.gate = spot.key and j.queue = lane and j.due_at is null and not j.suspect and j.kind = any (claim_limited.kinds)
            and ((10 - j.priority), j.id) > (rank, past) and (head is null or j.id = head)
          order by (10 - j.priority), j.id limit 1 for update skip locked;
        if not found then
          if again is null and exists (select from howdah.jobs j where j.gate = spot.key and j.queue = lane and j.due_at is null and not j.suspect) then
            again := clock_timestamp() + interval '200 ms';      -- it is of a kind that others have, or somebody holds it
          end if;
          exit;
        end if;
        if room <= 0 then
          shut := true;
          until := null;
          exit;
        end if;
        rank := job.rank;
        past := job.id;
        if job.expired then                         -- it takes neither slot nor token to say so
          delete from howdah.jobs j where j.id = job.id returning j.* into gone;
          perform howdah.bury_cancelled(gone, 'howdah', 'it expired before it was started');
          perform howdah.note_ended(array[gone.id], array['cancelled'], array[gone.batch], true);
          turns := turns - 1;
          continue;
        end if;
        select a.blocked, a.open_at into blocked, until from howdah.acquire(job.id, howdah.keys_of(job.limits, job.fifo_key), spot.key) a;
        if blocked is null then
          update howdah.jobs j set lease = claim_limited.lease, leased_by = claim_limited.worker, attempt = j.attempt + 1,
            claimed_at = greatest(clock_timestamp(), j.created_at), gate = null where j.id = job.id;
          taken := taken || job.id;
          free[place] := free[place] - 1;
          room := room - 1;
        elsif blocked = '' then
          again := clock_timestamp() + interval '5 ms';
        elsif blocked = spot.key then
          shut := true;
          exit;
        else
          update howdah.jobs j set gate = blocked where j.id = job.id;
          turns := turns - 1;
        end if;
      end loop;
      exit when shut;
      if again is not null then
        -- What others have opened here and we can see stays until we are done: we have the lock.
        insert into howdah.openings (key, queue, open_at)
        select spot.key, lane, again where not exists (select from howdah.openings o where o.key = spot.key and o.queue = lane and o.open_at <= again);
      end if;
    end loop;
    if shut and until is not null then
      insert into howdah.openings (key, open_at)
      select spot.key, until where not exists (select from howdah.openings o where o.key = spot.key and o.queue = '' and o.open_at <= until);
    end if;
  end loop;

  select extract(epoch from min(o.open_at) - clock_timestamp())::float8 into next_in
    from (select q.queue from unnest(served, free) q(queue, room) where q.room > 0 union all select '') q
    cross join lateral (select o.open_at from howdah.openings o where o.queue = q.queue order by o.open_at limit 1) o;
  if busy then
    next_in := greatest(next_in, 0.003);
  elsif next_in < 0 then
    next_in := 0;
  end if;
  more := exists (select from unnest(served, free) q(queue, room) join howdah.openings o on o.queue = q.queue where q.room <= 0);
  return query
  select j.id, j.queue, j.kind, j.payload, j.priority, j.attempt, j.max_attempts, extract(epoch from j.timeout)::float8,
    greatest(extract(epoch from j.claimed_at - j.ready_at), 0)::float8, extract(epoch from j.expires_at - j.claimed_at)::float8,
    j.subject, j.headers, j.created_at, j.crashes, j.batch, claim_limited.next_in, claim_limited.more
  from (select 1) one left join howdah.jobs j on j.id = any (taken);
end $$;

-- The queues in which something stands at a key: a descent of the index for each.
create function howdah.lanes_at(gate text) returns text[] language sql stable
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
with recursive lane as (
  (select j.queue from howdah.jobs j where j.gate = lanes_at.gate and j.due_at is null and not j.suspect order by j.queue limit 1)
  union all
  select next.queue from lane cross join lateral (
    select j.queue from howdah.jobs j where j.gate = lanes_at.gate and j.due_at is null and not j.suspect and j.queue > lane.queue
    order by j.queue limit 1) next)
select array(select l.queue from lane l) $$;

-- Gives back the tokens of jobs that were given back without having been started.
create function howdah.return_tokens(ids bigint[]) returns void language sql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
insert into howdah.openings (key, tokens)
select k.key, count(*) from howdah.jobs j cross join unnest(j.limits) k(key)
where j.id = any (return_tokens.ids) and (howdah.limit_for(k.key)).rate is not null group by k.key $$;

-- Which of these kinds and queues a limit holds for.
create function howdah.standing_among(kinds text[], queues text[], out limited_kinds text[], out limited_queues text[]) language sql stable as $$
select array(select k.name from unnest(kinds) k(name) where (howdah.limit_for('kind:' || k.name)).name is not null),
  array(select q.name from unnest(queues) q(name) where (howdah.limit_for('queue:' || q.name)).name is not null) $$;

-- Sends jobs that stand in the claim index to the lines of what holds for their kind or queue: those that were not known to have a limit when
-- they came. Looks where a claim looks, under the claim's plan.
create function howdah.send_to_gates(queues text[], limited_queues text[], limited_kinds text[], count int default 1000) returns void language sql as $$
with late as materialized (
  select one.id from unnest(queues) q(queue) cross join lateral (
    select j.id from howdah.jobs j
    where j.queue = q.queue and j.due_at is null and not j.suspect and j.gate is null and ((10 - j.priority), j.id) > (-1, 0)
      and j.lease is null and (q.queue = any (limited_queues) or j.kind = any (limited_kinds))
    order by (10 - j.priority), j.id limit send_to_gates.count for update skip locked) one)
update howdah.jobs j set limits = k.keys, gate = (howdah.keys_of(k.keys, j.fifo_key))[1]
from late cross join lateral (select h.id, howdah.with_standing(h.limits, h.kind, h.queue) as keys from howdah.jobs h where h.id = late.id) k
where j.id = k.id $$;

-- Has the limits of a kind or a queue hold for what is queued already, as far as nobody holds it this moment: claims find the rest.
create function howdah.apply_standing(prefix text, whole boolean) returns void language sql as $$
update howdah.kinds k set limited = n.limited
from (select k.name, exists (select from howdah.limits l where l.name like 'queue:%') or (howdah.limit_for('kind:' || k.name)).name is not null as limited
      from howdah.kinds k order by k.name for update) n
where k.name = n.name and k.limited <> n.limited;
update howdah.settings s set limited = n.limited from (select exists (select from howdah.limits l where l.standing) as limited) n where s.limited <> n.limited;
with late as materialized (
  select j.id from howdah.jobs j
  where j.lease is null and case when whole then apply_standing.prefix in ('kind:' || j.kind, 'queue:' || j.queue)
    else starts_with('kind:' || j.kind, apply_standing.prefix) or starts_with('queue:' || j.queue, apply_standing.prefix) end
  order by j.id for update skip locked)
update howdah.jobs j set limits = k.keys, gate = case when j.gate is not null then j.gate else (howdah.keys_of(k.keys, j.fifo_key))[1] end
from late cross join lateral (select h.id, h.limits, howdah.with_standing(h.limits, h.kind, h.queue) as keys from howdah.jobs h where h.id = late.id) k
where j.id = k.id and k.keys is distinct from k.limits $$;

-- Opens every line whose key begins so, or one: something about its limit has changed.
create function howdah.open_lines(prefix text, whole boolean) returns void language sql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
with recursive line as (
  (select j.gate from howdah.jobs j where j.gate >= prefix and j.gate is not null and j.due_at is null and not j.suspect order by j.gate limit 1)
  union all
  select next.gate from line cross join lateral (
    select j.gate from howdah.jobs j where j.gate > line.gate and j.gate is not null and j.due_at is null and not j.suspect order by j.gate limit 1) next
  where starts_with(line.gate, prefix) and not whole)
insert into howdah.openings (key) select l.gate from line l where starts_with(l.gate, prefix) and (l.gate = prefix or not whole);
select howdah.notify('howdah_control', 'limits') $$;

-- Sets what holds for a key or a pattern (`chat:*`), from the commit on: how many may run at once, how many may start in a second
-- and how many of these at one moment. Null: any number. What runs goes on; nothing new starts until the key is below the new limit.
create function howdah.set_limit(name text, concurrency int default null, rate float8 default null, burst int default null)
returns void language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
#variable_conflict use_variable
begin
  if name is null or length(name) not between 1 and 200 or name ~ '[[:cntrl:]]' or strpos(left(name, -1), '*') > 0 or starts_with(name, 'fifo:') then
    perform howdah.refuse(array['JB002', format('name is %L', left(name, 200)), '1 to 200 characters, a * only as the last of them']);
  elsif concurrency is null and rate is null then
    perform howdah.refuse(array['JB002', 'neither concurrency nor rate is given', 'howdah.remove_limit takes a limit away']);
  elsif concurrency < 0 then
    perform howdah.refuse(array['JB002', format('concurrency is %s', concurrency), '0 (nothing starts) or more']);
  elsif not (rate > 0 and rate < 'infinity') then
    perform howdah.refuse(array['JB002', format('rate is %s', rate), 'starts per second, more than none']);
  elsif burst < 1 or burst is not null and rate is null then
    perform howdah.refuse(array['JB002', format('burst is %s', burst), 'at least 1, and with a rate']);
  end if;
  insert into howdah.limits as l (name, concurrency, rate, burst)
  values (name, concurrency, rate, coalesce(burst, greatest(ceil(rate / 50), 1)::int))
  on conflict on constraint limits_pkey do update set concurrency = excluded.concurrency, rate = excluded.rate, burst = excluded.burst, set_at = excluded.set_at;
  if name ~ '^(kind|queue):' then
    perform howdah.apply_standing(rtrim(name, '*'), name not like '%*');
  end if;
  perform howdah.open_lines(rtrim(name, '*'), name not like '%*');
end $$;

-- Takes a limit away, and tells whether there was one.
create function howdah.remove_limit(name text) returns boolean
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
#variable_conflict use_variable
begin
  delete from howdah.limits l where l.name = remove_limit.name;
  if not found then return false; end if;
  if name ~ '^(kind|queue):' then
    perform howdah.apply_standing(rtrim(name, '*'), name not like '%*');
  end if;
  perform howdah.open_lines(rtrim(name, '*'), name not like '%*');
  return true;
end $$;

-- Finds what no opening leads to though it might start, and forgets what means nothing any more; tells how many lines it opened. The safety net:
-- reads a few index entries for each key that jobs wait at.
create function howdah.sweep_limits() returns int language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  opened int;
begin
  with recursive line as (
    (select j.gate from howdah.jobs j where j.gate is not null and j.due_at is null and not j.suspect order by j.gate limit 1)
    union all
    select next.gate from line cross join lateral (
      select j.gate from howdah.jobs j where j.gate > line.gate and j.gate is not null and j.due_at is null and not j.suspect order by j.gate limit 1) next)
  insert into howdah.openings (key) select l.gate from line l
  where not exists (select from howdah.openings o where o.key = l.gate) and not exists (select from howdah.holds h where h.key = l.gate)
    and (howdah.limit_for(l.gate)).concurrency is distinct from 0;
  get diagnostics opened = row_count;
  -- No token is further away than that, unless the clock was set back.
  with ahead as materialized (
    select o.id from howdah.openings o where o.open_at > clock_timestamp() + interval '1 second'
      and o.open_at > clock_timestamp() + 2 / coalesce((howdah.limit_for(o.key)).rate, 2) * interval '1 second' order by o.id for update skip locked)
  update howdah.openings o set open_at = clock_timestamp() from ahead where o.id = ahead.id;
  if found then opened := opened + 1; end if;
  delete from howdah.buckets b where b.key in (
    select o.key from howdah.buckets o where o.full_at < clock_timestamp() - interval '1 minute' order by o.key limit 1000 for update skip locked)
    and howdah.try_lock(7316043, hashtext(b.key));
  if opened > 0 then
    perform howdah.notify('howdah_control', 'limits');
  end if;
  return opened;
end $$;

-- How full the limits are: how many run under each, how many wait in its lines and for how long the oldest of these has, in seconds. At most `count`
-- jobs of a line and 200 lines of a pattern are counted, which `cut` tells: the price does not grow with what waits.
create function howdah.limit_lines(count int default 1000)
returns table (name text, concurrency int, rate float8, burst int, set_at timestamptz, keys bigint, running bigint, waiting bigint, cut boolean, oldest float8)
language sql stable security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
with recursive line as (
  select l.name, first.gate, 1 as place from howdah.limits l cross join lateral (
    select j.gate from howdah.jobs j where j.gate >= rtrim(l.name, '*') and j.gate is not null and j.due_at is null and not j.suspect order by j.gate limit 1) first
  union all
  select line.name, next.gate, line.place + 1 from line cross join lateral (
    select j.gate from howdah.jobs j where j.gate > line.gate and j.gate is not null and j.due_at is null and not j.suspect order by j.gate limit 1) next
  where right(line.name, 1) = '*' and starts_with(line.gate, left(line.name, -1)) and line.place < 200),
mine as materialized (
  select line.* from line where case when right(line.name, 1) = '*' then (howdah.limit_for(line.gate)).name = line.name else line.gate = line.name end),
waiting as materialized (
  select mine.name, sum(w.jobs)::bigint as jobs, bool_or(w.jobs >= limit_lines.count or mine.place >= 200) as cut, min(w.ready_at) as ready_at
  from mine cross join lateral (
    select count(*) as jobs, min(few.ready_at) as ready_at from (
      select j.ready_at from howdah.jobs j where j.gate = mine.gate and j.due_at is null and not j.suspect
      order by j.gate, j.queue, (10 - j.priority), j.id limit limit_lines.count) few) w
  group by mine.name),
held as materialized (
  select (howdah.limit_for(h.key)).name, count(distinct h.key) as keys, count(*) as running from howdah.holds h group by 1)
select l.name, l.concurrency, l.rate, l.burst, l.set_at, coalesce(h.keys, 0), coalesce(h.running, 0), coalesce(w.jobs, 0), coalesce(w.cut, false),
  greatest(extract(epoch from clock_timestamp() - w.ready_at), 0)::float8
from howdah.limits l left join held h on h.name = l.name left join waiting w on w.name = l.name
order by l.name $$;
