-- Campaigns: one text to many chats, once each, no faster than the channel allows.
--
-- A message's status says what is known of it, and is written before and after the send: `sending` before the first byte leaves,
-- so that whoever finds it there knows that it may have been delivered. The job of a message asks for the right to send
-- (app.begin_message), sends, and writes down what came of it (app.end_message). What its job cannot write any more, because it
-- died or was cancelled, the job behind the batch of all of them does (app.finish_campaign).

-- A bot. The token is a secret, and an error of a constraint shows the whole row: what is wrong with one is found by a trigger.
create table app.channels (
  id              uuid        primary key default gen_random_uuid(),
  kind            text        not null default 'telegram',
  token           text        not null,
  rate_per_second float8      not null default 25,
  quiet_until     timestamptz                           -- the server asked for silence; written by app.quiet_channel alone
);

create table app.templates (
  id   uuid primary key default gen_random_uuid(),
  body text not null
);

create table app.batches (
  id         uuid        primary key default gen_random_uuid(),
  created_at timestamptz not null default now()
);

create table app.batch_recipients (
  batch_id  uuid  not null references app.batches on delete cascade,
  chat_id   text  not null check (length(chat_id) between 1 and 100),
  variables jsonb not null default '{}' check (jsonb_typeof(variables) = 'object'),
  primary key (batch_id, chat_id)
);

-- draft → starting → running → completed, from each of the first three to cancelled, from starting to failed (nothing was sent,
-- `error` says why, and it may be started again). The counts are those of the end; while it runs app.campaign_progress has them.
create table app.campaigns (
  id           uuid        primary key default gen_random_uuid(),
  batch_id     uuid        not null references app.batches,
  template_id  uuid        not null references app.templates,
  channel_id   uuid        not null references app.channels,
  status       text        not null default 'draft'
    check (status in ('draft', 'starting', 'running', 'completed', 'cancelled', 'failed')),
  total        int         not null default 0,
  sent         int         not null default 0,
  failed       int         not null default 0,
  unknown      int         not null default 0,            -- may have been delivered, and are not sent again
  cancelled    int         not null default 0,
  repeated     int         not null default 0,            -- of the above: sent again although they may have been delivered
  error        text,
  created_at   timestamptz not null default now(),
  started_at   timestamptz,
  completed_at timestamptz
);
create index campaigns_batch_id on app.campaigns (batch_id);
create index campaigns_template_id on app.campaigns (template_id);
create index campaigns_channel_id on app.campaigns (channel_id);

-- No index names the status: writing it stays heap-only, with the free room of every page.
create table app.messages (
  id          uuid        primary key default gen_random_uuid(),
  campaign_id uuid        not null references app.campaigns on delete cascade,
  chat_id     text        not null,
  text        text,                                       -- null: it could not be rendered
  status      text        not null default 'queued'
    check (status in ('queued', 'sending', 'sent', 'failed', 'unknown', 'cancelled')),
  repeated    int         not null default 0,             -- how often it was sent again without knowing of the time before
  sent_at     timestamptz,
  external_id text,
  error       text,
  unique (campaign_id, chat_id)
) with (fillfactor = 70);

create table app.audit_log (
  id         bigint      primary key generated always as identity,
  actor      text        not null,
  action     text        not null,
  subject    text        not null,
  details    jsonb       not null default '{}',
  created_at timestamptz not null default clock_timestamp()
);
create index audit_log_subject on app.audit_log (subject);

-- How far the campaigns are, this moment.
create view app.campaign_progress as
select c.id as campaign_id, c.status, c.total,
       count(*) filter (where m.status = 'queued')::int as queued, count(*) filter (where m.status = 'sending')::int as sending,
       count(*) filter (where m.status = 'sent')::int as sent, count(*) filter (where m.status = 'failed')::int as failed,
       count(*) filter (where m.status = 'unknown')::int as unknown, count(*) filter (where m.status = 'cancelled')::int as cancelled,
       count(*) filter (where m.repeated > 0)::int as repeated
from app.campaigns c left join app.messages m on m.campaign_id = c.id
group by c.id;

-- A channel's limit follows its row. Before the row's own constraints, which would show the token.
-- The limit is nine tenths of the rate, and one message at a time where that keeps up: what leaves evenly arrives unevenly, and in no
-- second may more arrive than the rate.
create function app.channel_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op = 'DELETE' then
    perform howdah.remove_limit('channel:' || old.id);
    return old;
  end if;
  if new.kind is distinct from 'telegram' then
    raise exception using errcode = '23514', message = format('channel: kind is %L', new.kind), hint = 'telegram';
  elsif coalesce(new.token, '') !~ '^[!-~]+$' then
    raise exception using errcode = '23514', message = 'channel: the token is empty or has characters that no token has',
      hint = 'the token that the bot was given, such as 123456:ABC-DEF';
  elsif not coalesce(new.rate_per_second > 0 and new.rate_per_second <= 10000, false) then
    raise exception using errcode = '23514', message = format('channel: rate_per_second is %s', coalesce(new.rate_per_second::text, 'null')),
      hint = 'more than nothing, at most 10000';
  end if;
  if tg_op = 'INSERT' or new.rate_per_second <> old.rate_per_second then
    perform howdah.set_limit('channel:' || new.id, rate => 0.9 * new.rate_per_second, burst => ceil(new.rate_per_second / 100)::int);
  end if;
  return new;
end $$;
create trigger channel_changed before insert or update or delete on app.channels
  for each row execute function app.channel_changed();

-- One message a second to a chat, whichever campaign it is of.
select howdah.set_limit('chat:*', rate => 1, burst => 1);

-- Makes a campaign, which nobody has been told of yet, and gives its id.
create function app.create_campaign(batch_id uuid, template_id uuid, channel_id uuid, created_by text default null) returns uuid language plpgsql as $$
#variable_conflict use_variable
declare
  campaign uuid;
begin
  insert into app.campaigns (batch_id, template_id, channel_id) values (batch_id, template_id, channel_id) returning id into campaign;
  insert into app.audit_log (actor, action, subject, details)
  values (coalesce(created_by, current_user), 'campaign_created', 'campaign:' || campaign,
          jsonb_build_object('batch_id', batch_id, 'template_id', template_id, 'channel_id', channel_id));
  return campaign;
end $$;

-- Has a campaign started by a job. {"success": true, "status": "starting", "job_id", "created"}; for one that has been started, or was
-- cancelled, {"success": false, "reason", "status"}, and nothing happens. One that failed to start may be started again.
create function app.start_campaign(campaign_id uuid, started_by text) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  found_status text;
  job          record;
begin
  select c.status into found_status from app.campaigns c where c.id = campaign_id for no key update;
  if found_status is null then
    return jsonb_build_object('success', false, 'reason', 'campaign_not_found', 'campaign_id', campaign_id);
  elsif found_status in ('running', 'completed') then
    return jsonb_build_object('success', false, 'reason', 'already_started', 'campaign_id', campaign_id, 'status', found_status);
  elsif found_status = 'cancelled' then
    return jsonb_build_object('success', false, 'reason', 'cancelled', 'campaign_id', campaign_id, 'status', found_status);
  end if;
  update app.campaigns c set status = 'starting', error = null where c.id = campaign_id;
  select e.id, e.created into job from howdah.enqueue('start_campaign', jsonb_build_object('campaign_id', campaign_id, 'started_by', started_by),
    unique_key => 'start_campaign:' || campaign_id, subject => 'campaign:' || campaign_id) e;
  return jsonb_build_object('success', true, 'campaign_id', campaign_id, 'status', 'starting', 'job_id', job.id, 'created', job.created);
end $$;

-- Cancels what is not sent, and gives {"success": true, "cancelled": how many messages, "sending": how many are on the wire}. Those may still
-- be delivered, and are counted by what comes of them. {"success": false, "reason", "status"} if it has ended already.
-- The messages first: what asks for the right to send from now on does not get it, whether its job has been told or not.
create function app.cancel_campaign(campaign_id uuid, by text, reason text) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  found_status text;
  withdrawn    int;
  on_the_wire  int;
begin
  select c.status into found_status from app.campaigns c where c.id = campaign_id for no key update;
  if found_status is null then
    return jsonb_build_object('success', false, 'reason', 'campaign_not_found', 'campaign_id', campaign_id);
  elsif found_status in ('completed', 'cancelled') then
    return jsonb_build_object('success', false, 'reason', 'already_' || found_status, 'campaign_id', campaign_id, 'status', found_status);
  end if;
  update app.messages m set status = 'cancelled' where m.campaign_id = cancel_campaign.campaign_id and m.status = 'queued';
  get diagnostics withdrawn = row_count;
  select p.sending into on_the_wire from app.campaign_progress p where p.campaign_id = cancel_campaign.campaign_id;
  update app.campaigns c set status = 'cancelled', sent = p.sent, failed = p.failed, unknown = p.unknown, cancelled = p.cancelled, repeated = p.repeated
  from app.campaign_progress p where c.id = cancel_campaign.campaign_id and p.campaign_id = c.id;
  insert into app.audit_log (actor, action, subject, details)
  values (coalesce(by, current_user), 'campaign_cancelled', 'campaign:' || campaign_id,
          jsonb_build_object('reason', reason, 'cancelled', withdrawn, 'sending', on_the_wire, 'was', found_status));
  perform howdah.cancel_subject('campaign:' || campaign_id, by, reason);
  return jsonb_build_object('success', true, 'campaign_id', campaign_id, 'cancelled', withdrawn, 'sending', on_the_wire);
end $$;

-- The limits that a message keeps.
create function app.message_limits(channel_id uuid, chat_id text) returns text[] language sql immutable as $$
select array['channel:' || channel_id, 'chat:' || chat_id] $$;

-- Lets the messages of a campaign go, which have all been written: a job for each, and one behind all of them. Gives the counts, or
-- null if somebody has cancelled it meanwhile. The job rows come last: until then nobody waits for long.
create function app.release_campaign(campaign_id uuid, started_by text) returns jsonb language plpgsql as $$
#variable_conflict use_variable
declare
  batch   bigint;
  counted record;
  jobs    jsonb;
begin
  select count(*)::int as total, count(*) filter (where m.status = 'failed')::int as failed into counted
    from app.messages m where m.campaign_id = release_campaign.campaign_id;
  update app.campaigns c set status = 'running', total = counted.total, started_at = clock_timestamp()
    where c.id = campaign_id and c.status in ('draft', 'starting');
  if not found then return null; end if;
  insert into app.audit_log (actor, action, subject, details)
  values (started_by, 'campaign_started', 'campaign:' || campaign_id, jsonb_build_object('total', counted.total, 'failed', counted.failed));
  batch := howdah.create_batch('finish_campaign', jsonb_build_object('campaign_id', campaign_id), subject => 'campaign-end:' || campaign_id);
  for jobs in
    select jsonb_agg(jsonb_build_object('kind', 'send_message', 'payload', jsonb_build_object('message_id', q.id), 'batch', batch,
      'subject', 'campaign:' || campaign_id, 'limits', app.message_limits(q.channel_id, q.chat_id)))
    from (select m.id, m.chat_id, c.channel_id, (row_number() over (order by m.id) - 1) / 1000 as part
          from app.messages m join app.campaigns c on c.id = m.campaign_id
          where m.campaign_id = release_campaign.campaign_id and m.status = 'queued') q
    group by q.part order by q.part
  loop
    perform howdah.enqueue_many(jobs);
  end loop;
  return jsonb_build_object('total', counted.total, 'failed', counted.failed);
end $$;

-- The right to send a message, committed before its first byte leaves: `status` is sending, with all that it takes. Else there is
-- nothing to send now: quiet (for `wait` seconds), gone, or the status that the message has.
create function app.begin_message(message_id uuid, out status text, out token text, out chat_id text, out text text, out external_id text, out wait float8)
language plpgsql as $$
#variable_conflict use_variable
begin
  select case when m.status in ('queued', 'sending') and c.status <> 'running' then c.status else m.status end, m.external_id,
         extract(epoch from h.quiet_until - clock_timestamp())
    into status, external_id, wait
    from app.messages m join app.campaigns c on c.id = m.campaign_id join app.channels h on h.id = c.channel_id
    where m.id = message_id;
  if status is null then status := 'gone'; end if;
  if status not in ('queued', 'sending') then return; end if;
  if wait > 0 then
    status := 'quiet';
    return;
  end if;
  update app.messages m set status = 'sending', repeated = m.repeated + (m.status = 'sending')::int
    from app.campaigns c join app.channels h on h.id = c.channel_id
    where m.id = message_id and c.id = m.campaign_id and m.status in ('queued', 'sending')
    returning m.status, h.token, m.chat_id, m.text into status, token, chat_id, text;
  if not found then                                   -- cancelled between the two statements
    select m.status into status from app.messages m where m.id = message_id;
  end if;
end $$;

-- Writes down what came of a send: sent, failed, unknown, or queued (it was surely not delivered, and will be tried again). That it was
-- delivered is always true; anything else yields to what somebody else has found out, while we were taken for dead.
create function app.end_message(message_id uuid, status text, external_id text, error text) returns void language sql as $$
update app.messages m
  set status = end_message.status, error = end_message.error, external_id = end_message.external_id,
      sent_at = case when end_message.status = 'sent' then clock_timestamp() end
  where m.id = end_message.message_id
    and case end_message.status when 'sent' then m.status <> 'sent' else m.status = 'sending' end $$;

-- Keeps a message's channel quiet for so many seconds, at most a minute: then one asks again, for nobody says whom the silence was for.
create function app.quiet_channel(message_id uuid, seconds float8) returns void language sql as $$
update app.channels h set quiet_until = clock_timestamp() + least(quiet_channel.seconds, 60) * interval '1 second'
from app.messages m join app.campaigns c on c.id = m.campaign_id
where m.id = quiet_channel.message_id and h.id = c.channel_id
  and coalesce(h.quiet_until < clock_timestamp() + least(quiet_channel.seconds, 60) * interval '1 second', true) $$;

-- Ends a campaign when no job of it lives any more, once, and gives its counts; null if it is gone. What the jobs could not
-- write any more is written here: a message that is still `sending` may have been delivered.
-- `security definer`: it reads how the jobs ended.
create function app.finish_campaign(campaign_id uuid) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  campaign app.campaigns;
begin
  select c.* into campaign from app.campaigns c where c.id = campaign_id for no key update;
  if not found then return null; end if;
  if exists (select from app.messages m where m.campaign_id = finish_campaign.campaign_id and m.status in ('queued', 'sending')) then
    with job as materialized (
      select distinct on (s.payload ->> 'message_id') s.payload ->> 'message_id' as message_id, s.state, coalesce(s.cancel_reason, s.error) as said
      from howdah.job_status s
      where s.subject = 'campaign:' || campaign_id and s.kind = 'send_message' and s.state in ('dead', 'cancelled')
      order by 1, s.id desc)
    update app.messages m
      set status = case when m.status = 'sending' then 'unknown'
                        when campaign.status = 'cancelled' or l.state = 'cancelled' then 'cancelled' else 'failed' end,
          error = coalesce(l.said, m.error, 'its job ended without a word')
    from app.messages k left join job l on l.message_id = k.id::text
    where m.id = k.id and k.campaign_id = finish_campaign.campaign_id and k.status in ('queued', 'sending');
  end if;
  update app.campaigns c
    set sent = p.sent, failed = p.failed, unknown = p.unknown, cancelled = p.cancelled, repeated = p.repeated,
        status = case c.status when 'running' then 'completed' else c.status end,
        completed_at = case c.status when 'running' then clock_timestamp() else c.completed_at end
  from app.campaign_progress p where c.id = finish_campaign.campaign_id and p.campaign_id = c.id
  returning c.* into campaign;
  if not exists (select from app.audit_log a where a.subject = 'campaign:' || campaign_id and a.action = 'campaign_ended') then
    insert into app.audit_log (actor, action, subject, details)
    values ('howdah', 'campaign_ended', 'campaign:' || campaign_id, jsonb_build_object('status', campaign.status, 'total', campaign.total,
      'sent', campaign.sent, 'failed', campaign.failed, 'unknown', campaign.unknown, 'cancelled', campaign.cancelled, 'repeated', campaign.repeated));
  end if;
  return jsonb_build_object('status', campaign.status, 'total', campaign.total, 'sent', campaign.sent, 'failed', campaign.failed,
    'unknown', campaign.unknown, 'cancelled', campaign.cancelled, 'repeated', campaign.repeated);
end $$;

-- What the handlers do here.
grant select, update (quiet_until) on app.channels to app_handlers;
grant select on app.templates, app.batch_recipients, app.campaign_progress to app_handlers;
grant select, update (status, total, started_at, error) on app.campaigns to app_handlers;
grant select, insert, update (status, repeated, sent_at, external_id, error) on app.messages to app_handlers;
grant insert on app.audit_log to app_handlers;
