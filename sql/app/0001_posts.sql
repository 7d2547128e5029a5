-- Posts and what people do with them. The numbers that are stored beside a post, its likes and its rank, follow the rows
-- they are made from by jobs: no like ever waits for another, and app.like_drift is empty whenever no job is left.

create schema app;

-- Whom the handlers connect as: a login of yours that is `in role app_handlers`. It may enqueue, and has in this schema what the
-- grants at the end of each of these files give, nothing more. Roles belong to the whole server: another database may have made it.
do $$
begin
  if to_regrole('app_handlers') is null then
    create role app_handlers nologin;
  end if;
exception
  when duplicate_object or unique_violation then null;
end $$;
do $$
begin
  if not pg_has_role('app_handlers', 'howdah_producer', 'usage') then
    grant howdah_producer to app_handlers;
  end if;
exception
  when unique_violation then null;
  when others then
    if sqlerrm not like 'tuple concurrently updated' then raise; end if;
end $$;
grant usage on schema app to app_handlers;

-- What holds for the whole application: one row.
create table app.settings (
  singleton       boolean  primary key default true check (singleton),
  like_sync_delay interval not null default '2 seconds'  -- how long likes of one post are gathered into one job
);
insert into app.settings default values;

-- One browser or device of somebody, signed in or not.
create table app.sessions (
  id         uuid        primary key default gen_random_uuid(),
  created_at timestamptz not null default now(),
  expires_at timestamptz not null default now() + interval '30 days'
);
create index sessions_expires_at on app.sessions (expires_at);

-- No index may name likes: with the free fifth of every page its updates then stay heap-only, however often a post is
-- liked. Nor may a unique index name it: its update would become a key update, and wait for every open like.
create table app.posts (
  id         uuid        primary key default gen_random_uuid(),
  author_id  uuid,
  image_url  text        constraint image_url_is_an_address check (length(image_url) between 1 and 2048),  -- a picture in it would be the job's payload
  likes      int         not null default 0 check (likes >= 0),   -- written by app.sync_post_like_count alone
  rank       float8      not null default 0,                      -- written by app.recompute_rankings alone
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()                   -- of what the author wrote; likes and rank leave it alone
) with (fillfactor = 80);
create index posts_newest on app.posts (created_at desc);

-- A like. It outlives its session: a count must not fall because somebody's cookie has expired.
create table app.post_ratings (
  id         uuid        primary key default gen_random_uuid(),
  post_id    uuid        not null references app.posts on delete cascade,
  session_id uuid        references app.sessions on delete set null,
  created_at timestamptz not null default now(),
  unique (post_id, session_id)
);
create index post_ratings_session_id on app.post_ratings (session_id);

create table app.comments (
  id         uuid        primary key default gen_random_uuid(),
  post_id    uuid        not null references app.posts on delete cascade,
  session_id uuid        references app.sessions on delete set null,
  body       text        not null default '',
  created_at timestamptz not null default now()
);
create index comments_post_id on app.comments (post_id);
create index comments_session_id on app.comments (session_id);

-- Likes a post, or takes the like back, and tells whether it is liked now. Of two calls for the same post and session at
-- once, one likes and the other takes it back: the second waits in the delete or in the insert until the first has
-- committed. What it then finds changed under its insert it looks at anew, hence the loop.
create function app.toggle_like(post_id uuid, session_id uuid) returns boolean language plpgsql as $$
#variable_conflict use_column
begin
  loop
    delete from app.post_ratings r where r.post_id = toggle_like.post_id and r.session_id = toggle_like.session_id;
    if found then return false; end if;
    insert into app.post_ratings (post_id, session_id) values (toggle_like.post_id, toggle_like.session_id)
      on conflict (post_id, session_id) do nothing;
    if found then return true; end if;
  end loop;
end $$;

-- Sets a post's likes to the true count and returns it; null if the post is gone.
--
-- Two statements, because each sees the database as of its own start. Counting while waiting for the row would count
-- before the wait: of two calls at once the second would write a number that is older than the first one's. Once the row
-- is held no other call can write, and the count that begins then sees every like that had been committed.
-- It writes also what is right already: a transaction with an older snapshot then fails instead of writing an older count.
-- `no key`: a plain `for update` would wait for every open transaction that has liked this post, and they for it.
create function app.sync_post_like_count(post_id uuid) returns int language plpgsql as $$
#variable_conflict use_column
declare
  counted int;
begin
  perform from app.posts p where p.id = sync_post_like_count.post_id for no key update;
  update app.posts p
    set likes = (select count(*) from app.post_ratings r where r.post_id = p.id)
    where p.id = sync_post_like_count.post_id
    returning p.likes into counted;
  return counted;
end $$;

-- The posts whose stored count is wrong. Rows here are normal while events or jobs are on their way, and at no other time.
create view app.like_drift as
select p.id as post_id, p.likes as stored, coalesce(r.likes, 0) as actual
from app.posts p
left join (select r.post_id, count(*)::int as likes from app.post_ratings r group by r.post_id) r on r.post_id = p.id
where p.likes <> coalesce(r.likes, 0);

-- Looks at the `count` posts behind `past` in the order of their ids, corrects those that have drifted, and tells how far
-- it came: `last` is null when none were left. In id order, so that two of these at once wait but never deadlock.
create function app.resync_like_counts_batch(past uuid, count int, out last uuid, out checked int, out repaired int)
language plpgsql as $$
declare
  drifted uuid;
begin
  select (array_agg(p.id order by p.id desc))[1], count(*) into last, checked
    from (select p.id from app.posts p where p.id > past order by p.id limit resync_like_counts_batch.count) p;
  repaired := 0;
  for drifted in
    select p.id from app.posts p
    where p.id > past and p.id <= last
      and p.likes <> (select count(*) from app.post_ratings r where r.post_id = p.id)
    order by p.id
  loop
    perform app.sync_post_like_count(drifted);
    repaired := repaired + 1;
  end loop;
end $$;

-- Every change of ratings leads to a count that begins after its commit. One event per statement and post: a thousand
-- likes in one insert are one event, a thousand inserts within the delay are one job. It only appends, as the last thing
-- that the statement does: sessions that touch the same posts in any order never wait for each other here.
-- `security definer`: whoever may like needs no right to enqueue.
create function app.post_ratings_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  touched uuid[];
begin
  case tg_op
    when 'INSERT' then
      select array_agg(distinct n.post_id) into touched from new_rows n;
    when 'DELETE' then
      -- Where the post has gone with its likes there is nothing to count.
      select array_agg(distinct o.post_id) into touched from old_rows o where exists (select from app.posts p where p.id = o.post_id);
    when 'UPDATE' then
      -- A like that moves to another post changes both; most updates change neither (a session that ends).
      select array_agg(c.post_id) into touched
      from (select c.post_id
            from (select o.post_id, -1 as likes from old_rows o union all select n.post_id, 1 from new_rows n) c
            group by c.post_id having sum(c.likes) <> 0) c;
    else
      perform howdah.enqueue_coalesced('resync_like_counts', key => 'truncate');
  end case;
  perform howdah.enqueue_coalesced('sync_like_count', jsonb_build_object('post_id', t.post_id), key => t.post_id::text,
                                   delay => s.like_sync_delay, priority => 5)
    from unnest(touched) t(post_id) cross join app.settings s;
  return null;
end $$;

create trigger post_ratings_inserted after insert on app.post_ratings
  referencing new table as new_rows for each statement execute function app.post_ratings_changed();
create trigger post_ratings_deleted after delete on app.post_ratings
  referencing old table as old_rows for each statement execute function app.post_ratings_changed();
create trigger post_ratings_updated after update on app.post_ratings
  referencing old table as old_rows new table as new_rows for each statement execute function app.post_ratings_changed();
create trigger post_ratings_truncated after truncate on app.post_ratings
  for each statement execute function app.post_ratings_changed();

-- Ranks the newest posts: likes against age, so that a post sinks as it grows old. Returns how many ranks changed; only
-- those are written. Age counts in whole minutes: a run that is repeated at once writes nothing.
-- A post whose row is locked this moment keeps its rank until the next run, rather than holding up all the others.
create function app.recompute_rankings("limit" int) returns int language sql as $$
with newest as materialized (
  select p.id from app.posts p order by p.created_at desc limit recompute_rankings."limit"),
held as materialized (
  select p.id, p.likes, greatest(floor(extract(epoch from now() - p.created_at) / 60) / 60, 0)::float8 as hours
  from app.posts p where p.id in (select n.id from newest n)
  for no key update of p skip locked),
ranked as (
  select h.id, round(((h.likes + 1) / power(h.hours + 2, 1.5))::numeric, 6)::float8 as rank from held h),
written as (
  update app.posts p set rank = r.rank from ranked r where p.id = r.id and p.rank <> r.rank
  returning p.id)
select count(*)::int from written $$;

-- Deletes at most `count` sessions that expired longer ago than `age`, and tells how many. Their likes and comments stay.
-- A session that somebody is using this moment is locked; it is left for the next run.
create function app.delete_expired_sessions(age interval, count int) returns int language sql as $$
with expired as materialized (
  select s.id from app.sessions s
  where s.expires_at < now() - delete_expired_sessions.age
  order by s.expires_at limit delete_expired_sessions.count for update skip locked),
deleted as (
  delete from app.sessions s using expired e where s.id = e.id returning s.id)
select count(*)::int from deleted $$;

-- What the handlers do here; `for update` asks for the right to update, too.
grant select, update (likes, rank) on app.posts to app_handlers;
grant select on app.post_ratings to app_handlers;
grant select, update (expires_at), delete on app.sessions to app_handlers;
