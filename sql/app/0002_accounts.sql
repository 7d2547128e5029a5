-- Accounts: people, what they may learn, what they did, and where they came from.
--
-- A person has one id, the auth server's: auth_users.id = users.id. A student's own number is of another type, so that it can
-- never be taken for a person's: progress written with students.id is a type error, and with anything else a foreign key's.

-- The auth server's users, as far as they are known here.
create table app.auth_users (
  id         uuid        primary key,
  email      text        not null,
  created_at timestamptz not null default now()
);

create table app.users (
  id         uuid        primary key references app.auth_users on delete cascade,
  email      text        not null,
  full_name  text        not null default '',
  role       text        not null default 'user',
  settings   jsonb       not null default '{}' check (jsonb_typeof(settings) = 'object'),
  created_at timestamptz not null default now()
);
create unique index users_email on app.users (lower(email));

create table app.students (
  id                    bigint      generated always as identity primary key,   -- never a uuid: see above
  user_id               uuid        not null unique references app.auth_users on delete cascade,
  granted_by            uuid        references app.users on delete set null,
  email                 text        not null,
  full_name             text        not null,
  welcome_email_sent    boolean     not null default false,                     -- written by app.mark_welcomed alone
  welcome_email_sent_at timestamptz,
  created_at            timestamptz not null default now(),
  check (welcome_email_sent = (welcome_email_sent_at is not null))
);
create index students_granted_by on app.students (granted_by);

create table app.student_profiles (
  user_id    uuid        primary key references app.users on delete cascade,
  about      text        not null default '',
  created_at timestamptz not null default now()
);

create table app.modules (
  id         uuid        primary key default gen_random_uuid(),
  title      text        not null default '',
  created_at timestamptz not null default now()
);

create table app.lessons (
  id         uuid        primary key default gen_random_uuid(),
  module_id  uuid        not null references app.modules on delete cascade,
  position   int         not null,
  title      text        not null default '',
  unique (module_id, position)
);

create table app.student_progress (
  student_user_id uuid        not null references app.users on delete cascade,
  module_id       uuid        not null references app.modules on delete cascade,
  lesson_id       uuid        not null references app.lessons on delete cascade,
  status          text        not null default 'not_started' check (status in ('not_started', 'in_progress', 'completed')),
  updated_at      timestamptz not null default now(),
  primary key (student_user_id, lesson_id)
);
create index student_progress_module_id on app.student_progress (module_id);
create index student_progress_lesson_id on app.student_progress (lesson_id);

-- What managers did. It outlives both people.
create table app.sales_activity_log (
  id             bigint      generated always as identity primary key,
  manager_id     uuid        references app.users on delete set null,
  target_user_id uuid        references app.users on delete set null,
  action         text        not null,
  details        jsonb       not null default '{}',
  created_at     timestamptz not null default now()
);
create index sales_activity_log_manager_id on app.sales_activity_log (manager_id);
create index sales_activity_log_target_user_id on app.sales_activity_log (target_user_id);
-- A person becomes a student once, however often that is asked for.
create unique index sales_activity_log_created on app.sales_activity_log (target_user_id) where action = 'student_created';

create table app.user_activity_log (
  id         bigint      generated always as identity primary key,
  user_id    uuid        not null references app.users on delete cascade,
  action     text        not null,
  details    jsonb       not null default '{}',
  created_at timestamptz not null default now()
);
create index user_activity_log_user_id on app.user_activity_log (user_id);
create index user_activity_log_created_at on app.user_activity_log (created_at);

-- Who buys clicks for us.
create table app.traffic_targetologists (
  id         uuid        primary key default gen_random_uuid(),
  user_id    uuid        not null unique references app.auth_users on delete cascade,
  created_at timestamptz not null default now()
);

-- What the counters say, appended as it comes in: any number of rows to a day.
create table app.traffic_events (
  id               bigint        generated always as identity primary key,
  targetologist_id uuid          not null references app.traffic_targetologists on delete cascade,
  day              date          not null,
  clicks           bigint        not null default 0 check (clicks >= 0),
  spend            numeric(14,2) not null default 0 check (spend >= 0),
  registrations    bigint        not null default 0 check (registrations >= 0)
);
create index traffic_events_targetologist_id on app.traffic_events (targetologist_id);
create index traffic_events_day on app.traffic_events (day, targetologist_id);

-- The sums of a day. Written by app.roll_up_traffic alone.
create table app.traffic_analytics (
  targetologist_id uuid          not null references app.traffic_targetologists on delete cascade,
  day              date          not null,
  clicks           bigint        not null,
  spend            numeric(14,2) not null,
  registrations    bigint        not null,
  primary key (targetologist_id, day)
);
create index traffic_analytics_day on app.traffic_analytics (day);

-- What somebody wants to be told, and where: null means not there. Nobody is told anything who has no row here.
create table app.notification_settings (
  user_id  uuid primary key references app.users on delete cascade,
  email    text,      -- an address
  push_url text       -- a webhook of the user's own choice: reached through the guarded fetcher only
);

-- Makes a person a student, in one statement and so in one transaction: users, students, student_profiles, student_progress (the
-- first lesson of each module), sales_activity_log, and the welcome e-mail's job. Tells the student's number, and whether all
-- that is new. Safe to call again, also at once from elsewhere: what is there stays as it is, what is missing is added, and
-- there is one mail to one student. Refused, with nothing written, for a module that is not there or has no lesson.
-- The mirror's row comes before all others, because they hang on it; the job's comes last, as everywhere.
create function app.create_student(user_id uuid, email text, full_name text, granted_by uuid, module_ids uuid[],
  out student_id bigint, out created boolean)
language plpgsql as $$
#variable_conflict use_variable
declare
  empty uuid;
begin
  select m.id into empty from unnest(module_ids) m(id)
    where not exists (select from app.lessons l where l.module_id = m.id) limit 1;
  if found then
    raise foreign_key_violation using
      message = format('module %s has no lesson to begin with', empty),
      detail = format('module_ids: module %s is not there, or has no lesson to begin with.', empty);
  end if;

  insert into app.auth_users (id, email) values (user_id, email) on conflict (id) do nothing;
  insert into app.users (id, email, full_name, role) values (user_id, email, full_name, 'student') on conflict (id) do nothing;
  insert into app.students as s (user_id, granted_by, email, full_name) values (user_id, granted_by, email, full_name)
    on conflict on constraint students_user_id_key do nothing
    returning s.id into student_id;
  created := found;
  if not created then
    select s.id into student_id from app.students s where s.user_id = create_student.user_id;
  end if;
  insert into app.student_profiles (user_id) values (user_id) on conflict on constraint student_profiles_pkey do nothing;
  insert into app.student_progress (student_user_id, module_id, lesson_id)
    select distinct on (l.module_id) create_student.user_id, l.module_id, l.id
    from app.lessons l where l.module_id = any (module_ids) order by l.module_id, l.position
    on conflict do nothing;
  insert into app.sales_activity_log (manager_id, target_user_id, action, details)
    values (granted_by, user_id, 'student_created', jsonb_build_object('student_id', student_id, 'module_ids', to_jsonb(module_ids)))
    on conflict (target_user_id) where action = 'student_created' do nothing;
  if created then
    perform howdah.enqueue('send_welcome_email', jsonb_build_object('user_id', user_id), subject => 'user:' || user_id);
  end if;
end $$;

-- Notes that a student has been welcomed, once, and tells whether there is such a student. By the person's id: a student's own
-- number is a type error here.
create function app.mark_welcomed(user_id uuid) returns boolean language plpgsql as $$
#variable_conflict use_variable
begin
  update app.students s set welcome_email_sent = true, welcome_email_sent_at = clock_timestamp()
    where s.user_id = mark_welcomed.user_id and not s.welcome_email_sent;
  return exists (select from app.students s where s.user_id = mark_welcomed.user_id);
end $$;

-- Makes the sums of one day equal to its events, and tells for how many targetologists. One caller a day at a time: the sums
-- are read by a statement of its own that begins when the lock is held, so that of two runs the later one is not the older one.
create function app.roll_up_traffic(day date) returns int language plpgsql as $$
#variable_conflict use_variable
declare
  written int;
begin
  perform pg_advisory_xact_lock('app.traffic_analytics'::regclass::oid::int, day - date '2000-01-01');
  delete from app.traffic_analytics a where a.day = roll_up_traffic.day
    and not exists (select from app.traffic_events e where e.day = a.day and e.targetologist_id = a.targetologist_id);
  insert into app.traffic_analytics as a (targetologist_id, day, clicks, spend, registrations)
    select e.targetologist_id, e.day, sum(e.clicks), sum(e.spend), sum(e.registrations)
    from app.traffic_events e where e.day = roll_up_traffic.day group by e.targetologist_id, e.day
    on conflict on constraint traffic_analytics_pkey do update
      set clicks = excluded.clicks, spend = excluded.spend, registrations = excluded.registrations;
  get diagnostics written = row_count;
  return written;
end $$;

-- Tells how every reference of schema app is kept, a row each: foreign keys, and columns that are called like one, …_id, without
-- being one. `dangling` counts the rows whose parent is not there, where no constraint (or none that was ever checked) sees to it.
--   error    rows hang in the air
--   warning  nothing keeps them from it, or each delete of a parent reads the whole child for want of an index
--   info     called like a reference, but to nothing that is known here
-- `security definer`: it counts rows of tables that its caller may not read, and tells nothing else of them.
create function app.audit_references(out "table" text, out columns text[], out "references" text, out constrained boolean,
  out indexed boolean, out dangling bigint, out severity text, out finding text)
returns setof record language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  found record;
begin
  for found in
    with keys as (
      select c.conrelid as child, c.conkey as places, c.confrelid as parent, c.confkey as parent_places, c.convalidated as checked
      from pg_constraint c join pg_class t on t.oid = c.conrelid
      where c.contype = 'f' and c.conparentid = 0 and t.relnamespace = 'app'::regnamespace),
    -- A column that is called like a reference: to the table of that name in the plural, whose key is one column of its type.
    -- Of several (target_user_id: target_users, users) the longest name counts.
    called as (
      select t.oid as child, array[a.attnum] as places, p.parent, p.parent_places, false as checked
      from pg_class t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
      left join lateral (
        select i.indrelid as parent, i.indkey::int2[] as parent_places
        from pg_index i join pg_class r on r.oid = i.indrelid and r.relnamespace = 'app'::regnamespace
        join pg_attribute k on k.attrelid = r.oid and k.attnum = i.indkey[0] and k.atttypid = a.atttypid
        where i.indisprimary and i.indnkeyatts = 1
          and exists (
            select from unnest(array[left(a.attname, -3) || 's', left(a.attname, -3) || 'es', left(a.attname, -4) || 'ies']) name
            where name = r.relname or name like '%\_' || replace(r.relname, '_', '\_'))
        order by length(r.relname) desc limit 1) p on true
      where t.relnamespace = 'app'::regnamespace and t.relkind in ('r', 'p') and not t.relispartition and a.attname like '%\_id'
        and not exists (select from keys k where k.child = t.oid and a.attnum = any (k.places)))
    select k.child, k.places, k.parent, k.parent_places, true as constrained, k.checked from keys k
    union all
    select c.child, c.places, c.parent, c.parent_places, false, false from called c
    order by 1, 2
  loop
    "table" := found.child::regclass::text;
    columns := array(select a.attname::text from unnest(found.places) with ordinality p(place, nth)
                     join pg_attribute a on a.attrelid = found.child and a.attnum = p.place order by p.nth);
    "references" := found.parent::regclass::text;
    constrained := found.constrained;
    -- The key's columns lead the index, in any order; an index of some rows only serves where it leaves out nulls alone.
    indexed := exists (
      select from pg_index i
      where i.indrelid = found.child and i.indisvalid and i.indnkeyatts >= cardinality(found.places)
        and (i.indkey::int2[])[0:cardinality(found.places) - 1] @> found.places
        and (i.indpred is null or pg_get_expr(i.indpred, i.indrelid) in (
          select format('(%I IS NOT NULL)', name) from unnest(columns) name)));
    dangling := null;
    if found.parent is not null and not found.checked then
      execute format('select count(*) from %s c where %s and not exists (select from %s p where %s)', found.child::regclass,
        (select string_agg(format('c.%I is not null', name), ' and ') from unnest(columns) name),
        found.parent::regclass,
        (select string_agg(format('p.%I = c.%I', b.attname, a.attname), ' and ')
         from unnest(found.places, found.parent_places) pair(place, parent_place)
         join pg_attribute a on a.attrelid = found.child and a.attnum = pair.place
         join pg_attribute b on b.attrelid = found.parent and b.attnum = pair.parent_place))
        into dangling;
    end if;
    select verdict.severity, verdict.finding into severity, finding from (values
      (1, dangling > 0, 'error', format('%s rows hang in the air', dangling)),
      (2, not constrained and found.parent is not null, 'warning', 'no constraint keeps rows from hanging in the air'),
      (3, not constrained, 'info', 'called like a reference, but no table is known that it could refer to'),
      (4, not found.checked, 'warning', 'the constraint was never checked for the rows that were there before it'),
      (5, not indexed, 'warning', 'not indexed: each delete of a parent reads the whole table'),
      (6, true, 'ok', 'constrained and indexed')) verdict(nth, holds, severity, finding)
      where verdict.holds order by verdict.nth limit 1;
    return next;
  end loop;
end $$;
revoke execute on function app.audit_references() from public;

-- What the handlers do here. `on conflict` and `returning` ask for the right to read, too.
grant select, insert on app.auth_users, app.users, app.students, app.student_profiles, app.student_progress, app.sales_activity_log,
  app.user_activity_log to app_handlers;
grant update (welcome_email_sent, welcome_email_sent_at) on app.students to app_handlers;
grant select on app.modules, app.lessons, app.traffic_targetologists, app.traffic_events, app.notification_settings to app_handlers;
grant select, insert, update, delete on app.traffic_analytics to app_handlers;
grant execute on function app.audit_references() to app_handlers;
