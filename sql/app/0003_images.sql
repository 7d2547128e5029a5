-- Images of posts: which files there are in the storage, and which of them a post shows.
--
-- A file's row is committed before the file is written, and goes after the file has gone. So whenever a worker dies, every file has
-- its row, and what no post shows is found and removed.

create table app.post_images (
  id         uuid        primary key default gen_random_uuid(),
  post_id    uuid        references app.posts on delete set null,  -- who shows it; null: nobody, yet or any more
  variant    text        not null,                                 -- full, thumbnail_480, …
  width      int         not null check (width > 0),
  height     int         not null check (height > 0),
  bytes      bigint      not null check (bytes >= 0),
  format     text        not null,
  url        text        not null,
  key        text        not null unique,                          -- where it is in the storage: made of post, source and variant
  source     text        not null,                                 -- the digest of the picture that it was made from
  created_at timestamptz not null default now(),
  touched_at timestamptz not null default now(),                   -- when a job last set out to write the file
  unique (post_id, variant)
);
create index post_images_unused on app.post_images (touched_at, id) where post_id is null;

-- Says that a file is about to be written. Nobody shows it before app.show_images; the hour of grace that app.unused_images gives
-- begins anew with every attempt.
create function app.expect_image(key text, variant text, width int, height int, bytes bigint, url text, source text)
returns void language sql as $$
insert into app.post_images (key, variant, width, height, bytes, format, url, source)
values (expect_image.key, expect_image.variant, expect_image.width, expect_image.height, expect_image.bytes, 'webp', expect_image.url, expect_image.source)
on conflict (key) do update set width = excluded.width, height = excluded.height, bytes = excluded.bytes, url = excluded.url,
  touched_at = now() $$;

-- Tells why forms of an image are not wanted: the post is gone, or has come to another image. Null: they are.
create function app.image_unwanted(post_id uuid, image_url text) returns text language sql stable as $$
select case
  when p.id is null then 'the post is gone'
  when p.image_url is null then 'the post has no image any more'
  when p.image_url <> image_unwanted.image_url then 'the post has another image now' end
from (select) one left join app.posts p on p.id = image_unwanted.post_id $$;

-- Has a post show the files of `keys`, all of one source, and tells why it does not: see app.image_unwanted. What it showed of another
-- source steps back in the same moment, so that a post never shows a full image and the thumbnails of another.
-- Two jobs for one post pass one by one, and so does whoever changes its image_url: the row of the post is held, and read in a
-- statement of its own after that. `no key`: likes do not wait for it.
create function app.show_images(post_id uuid, image_url text, source text, keys text[]) returns text language plpgsql as $$
#variable_conflict use_column
declare
  why text;
begin
  perform from app.posts p where p.id = show_images.post_id for no key update;
  why := app.image_unwanted(show_images.post_id, show_images.image_url);
  if why is not null then return why; end if;
  if not exists (select from app.post_images i where i.variant = 'full' and i.source = show_images.source
                 and (i.key = any (keys) or i.post_id = show_images.post_id)) then
    return 'the post shows another image now';
  end if;
  update app.post_images i set post_id = null
    where i.post_id = show_images.post_id and i.source <> show_images.source;
  update app.post_images i set post_id = show_images.post_id where i.key = any (keys);
  if (select count(*) from app.post_images i where i.key = any (keys)) < cardinality(keys) then
    raise exception 'a file of post % was removed before it was shown: the job slept for more than an hour', show_images.post_id;
  end if;
  return null;
end $$;

-- Every change of a post's image leads to a job that begins after its commit, one for all changes that come together. A unique key
-- could not promise that: it would hold off the new image while the job of the old one runs. Jobs for what it was before are
-- cancelled; one that hears too late finds out in app.show_images.
-- `security definer`: whoever may post needs no right to enqueue.
create function app.post_image_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  subject text := 'post:' || case tg_op when 'DELETE' then old.id else new.id end;
begin
  if tg_op <> 'INSERT' then
    perform howdah.cancel_subject(subject, 'app', case tg_op when 'DELETE' then 'the post is gone' else 'the post''s image was changed' end);
  end if;
  if tg_op = 'UPDATE' and new.image_url is null then
    update app.post_images i set post_id = null where i.post_id = new.id;
  elsif tg_op <> 'DELETE' then
    perform howdah.enqueue_coalesced('process_image', jsonb_build_object('post_id', new.id, 'image_url', new.image_url),
                                     key => new.id::text, priority => 3, subject => subject);
  end if;
  return null;
end $$;

create trigger post_image_inserted after insert on app.posts
  for each row when (new.image_url is not null) execute function app.post_image_changed();
create trigger post_image_updated after update of image_url on app.posts
  for each row when (old.image_url is distinct from new.image_url) execute function app.post_image_changed();
create trigger post_image_deleted after delete on app.posts
  for each row when (old.image_url is not null) execute function app.post_image_changed();

-- Holds at most `count` files that no post shows, to be removed by whoever called, in this transaction: first the file, then the row.
-- `grace`: how long ago a job must last have set out to write one, because it may be about to show it. A job that wants to write one
-- which is held here waits in app.expect_image, and then makes a new row.
create function app.unused_images(grace interval, count int) returns table (id uuid, key text) language sql as $$
select i.id, i.key from app.post_images i
where i.post_id is null and i.touched_at < now() - unused_images.grace
order by i.touched_at, i.id limit unused_images.count for update skip locked $$;

-- Deletes at most `count` entries of the activity log that are older than `age`, and tells how many.
create function app.delete_old_activity(age interval, count int) returns int language sql as $$
with old as materialized (
  select l.id from app.user_activity_log l where l.created_at < now() - delete_old_activity.age
  order by l.created_at limit delete_old_activity.count for update skip locked),
deleted as (
  delete from app.user_activity_log l using old o where l.id = o.id returning l.id)
select count(*)::int from deleted $$;

grant select, insert, update, delete on app.post_images to app_handlers;
grant select, update (created_at), delete on app.user_activity_log to app_handlers;
