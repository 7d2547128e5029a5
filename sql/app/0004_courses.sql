-- Courses that are made from documents. A start of a course is a batch: one process_document for each document that is not done, one
-- summarize_document behind each of these, and structure_course, which runs when all of them have ended, however they ended.
--
-- Everybody takes locks from the top down, as a deletion does: the course, its documents, their chunks, and job rows last. Whoever
-- changes anything of a course takes its row first, at once in the strength that serves to the end (`no key update`): the jobs of
-- one course then take turns for the milliseconds of their writes, a course cannot go while somebody writes below it, and nobody
-- ever waits upwards. Your own transactions keep to it too: the course before its documents, cancellations and enqueues at the end.

create table app.organizations (
  id         uuid        primary key default gen_random_uuid(),
  name       text        not null,
  created_at timestamptz not null default now()
);

create table app.courses (
  id                  uuid        primary key default gen_random_uuid(),
  organization_id     uuid        references app.organizations on delete cascade,
  title               text        not null,
  has_documents       boolean     not null default false,          -- made exact by every start and every end of a batch
  generation_status   text        not null default 'idle'
    check (generation_status in ('idle', 'processing', 'completed', 'incomplete', 'failed')),
  generation_progress jsonb       not null default '{"steps": {}, "percentage": 0}',   -- written by app.update_course_progress
  outline             jsonb,                                       -- written by app.store_outline alone
  batch               bigint,                                      -- the newest start: the job structure_course behind it
  structured_by       bigint,                                      -- the job whose outline this is
  created_at          timestamptz not null default now()
);
create index courses_organization_id on app.courses (organization_id);

create table app.documents (
  id                uuid        primary key default gen_random_uuid(),
  course_id         uuid        not null references app.courses on delete cascade,
  filename          text        not null,
  content_type      text        not null default 'application/octet-stream',   -- what somebody said; the content corrects it
  storage_url       text        not null,                          -- in our own storage, or http(s)
  text              text,                                          -- Markdown
  headings          text[]      not null default '{}',
  processed_content text,                                          -- the summary
  -- pending: not started; processed: has text and chunks; completed: has a summary, too; failed: `error` tells people why
  status            text        not null default 'pending'
    check (status in ('pending', 'queued', 'processing', 'processed', 'completed', 'failed')),
  error             text,
  batch             bigint,                                        -- the start that it belongs to; jobs of another one leave it alone
  created_at        timestamptz not null default now()
);
create index documents_course_id on app.documents (course_id);

create table app.document_chunks (
  document_id     uuid not null references app.documents on delete cascade,
  ordinal         int  not null check (ordinal >= 1),
  text            text not null,
  tokens_estimate int  not null check (tokens_estimate >= 0),
  primary key (document_id, ordinal)
);

-- Only the first document of a course writes here: a later one would wait for the course's jobs, or they for it.
create function app.document_added() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update app.courses c set has_documents = true where c.id = new.course_id and not c.has_documents;
  return null;
end $$;
create trigger documents_added after insert on app.documents for each row execute function app.document_added();

-- Jobs of a course that is gone are wanted by nobody. At the end of the statement, when its courses and documents are gone: job rows
-- come last. What a running job wrote before it was told went with the course; what it tries afterwards finds no course.
create function app.courses_deleted() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform howdah.cancel_subject('course:' || g.id, 'app.courses', app.gone('course', g.id)) from (select o.id from old_rows o order by o.id) g;
  return null;
end $$;
create trigger courses_deleted after delete on app.courses
  referencing old table as old_rows for each statement execute function app.courses_deleted();

-- What a job is told whose course or document was deleted; it is the reason of its cancellation.
create function app.gone(what text, id uuid) returns text language sql immutable as $$
select format('%s %s is gone', what, id) $$;


-- -- Progress ---------------------------------------------------------------------------------------------------------

-- How far a course is, from its steps: those that have ended, whatever came of them, of all that are known, in per cent.
create function app.with_percentage(steps jsonb, message text) returns jsonb language sql stable as $$
select jsonb_build_object(
  'steps', with_percentage.steps, 'message', with_percentage.message, 'updated_at', clock_timestamp(),
  'percentage', coalesce((
    select 100 * count(*) filter (where s.value ->> 'status' in ('completed', 'failed', 'skipped')) / count(*)
    from jsonb_each(with_percentage.steps) s having count(*) > 0), 0)) $$;

-- A step of a course as it is from now on. What is null stays out; times and metadata of before are kept.
create function app.next_step(step jsonb, status text, message text, error_message text, error_details jsonb, metadata jsonb)
returns jsonb language sql stable as $$
select jsonb_object_agg(f.key, f.value) from jsonb_each(jsonb_build_object(
  'status', next_step.status, 'message', next_step.message,
  'error_message', next_step.error_message, 'error_details', next_step.error_details,
  'metadata', coalesce(next_step.step -> 'metadata', '{}') || coalesce(next_step.metadata, '{}'),
  'started_at', case when next_step.status <> 'pending' then coalesce(next_step.step -> 'started_at', to_jsonb(clock_timestamp())) end,
  'ended_at', case when next_step.status in ('completed', 'failed', 'skipped') then clock_timestamp() end)) f
where f.value not in ('null', '{}') $$;

-- Says how far one step of a course is: pending, in_progress, completed, failed or skipped. Answers {"success": true, "percentage", …},
-- or {"success": false, "reason": "course_not_found", "course_id"} for a course that is gone. One statement: of two calls at once the
-- second waits, and adds to what the first has left, so no step is lost. It holds the course to the end of the transaction: call it last.
create function app.update_course_progress(course_id uuid, step_id text, status text, message text default null,
  error_message text default null, error_details jsonb default null, metadata jsonb default null)
returns jsonb language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  percentage jsonb;
begin
  if coalesce(length(step_id), 0) not between 1 and 200 then
    raise invalid_parameter_value using message = format('step_id is %L', left(step_id, 200)), hint = 'one to 200 characters';
  elsif status is null or status not in ('pending', 'in_progress', 'completed', 'failed', 'skipped') then
    raise invalid_parameter_value using message = format('status is %L', status), hint = 'pending, in_progress, completed, failed or skipped';
  elsif jsonb_typeof(metadata) <> 'object' then
    raise invalid_parameter_value using message = format('metadata must be a JSON object, not %s', jsonb_typeof(metadata)), hint = 'pass jsonb_build_object(…)';
  end if;
  update app.courses c
    set generation_progress = app.with_percentage(
      coalesce(c.generation_progress -> 'steps', '{}') || jsonb_build_object(step_id,
        app.next_step(c.generation_progress -> 'steps' -> step_id, status, message, error_message, error_details, metadata)),
      coalesce(error_message, message, c.generation_progress ->> 'message'))
    where c.id = course_id returning c.generation_progress -> 'percentage' into percentage;
  if not found then
    return jsonb_build_object('success', false, 'reason', 'course_not_found', 'course_id', course_id);
  end if;
  return jsonb_build_object('success', true, 'course_id', course_id, 'step_id', step_id, 'status', status, 'percentage', percentage);
end $$;


-- -- The start --------------------------------------------------------------------------------------------------------

-- Whether a start of a course is still at work: the job behind it ends last.
create function app.is_live(batch bigint) returns boolean language sql stable security definer set search_path = pg_catalog, pg_temp as $$
select exists (select from howdah.job_status s where s.id = is_live.batch and s.finished_at is null) $$;

-- Starts what is not done of a course: documents that are new, or failed; with `again`, those that are done, too. Gives the batch, which
-- is also the id of its job structure_course. A document that a live start has in hand is left to it: called twice, it starts nothing
-- twice, and gives the start that runs. With all documents done, only the outline is made anew.
-- `security definer`: whoever may call it needs no right to enqueue. Grant it to those who may start courses.
create function app.start_course(course_id uuid, again boolean default false) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  subject text := 'course:' || course_id;
  newest  bigint;
  live    bigint[];
  wanted  uuid[];
  started bigint;
begin
  select c.batch into newest from app.courses c where c.id = course_id for no key update;
  if not found then
    raise no_data_found using message = format('there is no course %s', course_id), hint = 'the id of a row of app.courses';
  end if;
  select array_agg(b.batch) into live
    from (select newest as batch union select d.batch from app.documents d where d.course_id = start_course.course_id) b where app.is_live(b.batch);
  select array_agg(d.id order by d.created_at, d.id) into wanted from app.documents d
    where d.course_id = start_course.course_id and (again or d.status <> 'completed')
      and not (d.batch = any (coalesce(live, '{}')) and d.status in ('queued', 'processing', 'processed'));
  if wanted is null and live is not null then
    return (select max(b) from unnest(live) b);
  end if;

  started := howdah.create_batch('structure_course', jsonb_build_object('course_id', course_id), subject => subject);
  update app.documents d set status = 'queued', error = null, batch = started where d.id = any (wanted);
  update app.courses c
    set batch = started, generation_status = 'processing', has_documents = exists (select from app.documents d where d.course_id = c.id),
        generation_progress = app.with_percentage(app.steps_of(c.id, c.generation_progress -> 'steps') || p.steps || '{"structure_course": {"status": "pending"}}', 'started')
    from (select coalesce(jsonb_object_agg(k.kind || ':' || w.id, '{"status": "pending"}'::jsonb), '{}') as steps
          from unnest(wanted) w(id), unnest(array['process_document', 'summarize_document']) k(kind)) p
    where c.id = course_id;
  perform howdah.enqueue_payloads('process_document',
    array(select jsonb_build_object('course_id', course_id, 'document_id', w.id) from unnest(wanted) with ordinality w(id, place) order by w.place),
    subject => subject, batch => started);
  return started;
end $$;

-- Those steps of a course that are of no document, or of one that is still there.
create function app.steps_of(course_id uuid, steps jsonb) returns jsonb language sql stable as $$
select coalesce(jsonb_object_agg(s.key, s.value), '{}') from jsonb_each(steps_of.steps) s
where s.key !~ '^(process|summarize)_document:' or split_part(s.key, ':', 2) in (select d.id::text from app.documents d where d.course_id = steps_of.course_id) $$;


-- -- What the jobs do. Each of these is one statement of a handler: all of it, or nothing. -----------------------------

-- Holds a document and its course to the end of the transaction; `gone` says why it is not there for a job of this batch.
create function app.hold_document(course_id uuid, document_id uuid, batch bigint, out gone text, out document app.documents) language plpgsql as $$
#variable_conflict use_variable
begin
  perform from app.courses c where c.id = course_id for no key update;
  if not found then
    gone := app.gone('course', course_id);
    return;
  end if;
  select d.* into document from app.documents d where d.id = document_id and d.course_id = hold_document.course_id for no key update;
  gone := case when document.id is null then app.gone('document', document_id)
               when batch is not null and document.batch is distinct from batch then format('document %s belongs to another start of its course', document_id) end;
end $$;

-- Begins a job's work on a document and gives what it needs; `done`: an attempt before this one has done it already. A job without a
-- batch, made by hand or by howdah.retry, becomes a start of its course, which does whatever is not done: `started` is its batch.
create function app.begin_step(kind text, course_id uuid, document_id uuid, batch bigint,
  out gone text, out started bigint, out done boolean, out document app.documents)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  held record;
begin
  held := app.hold_document(course_id, document_id, batch);
  gone := held.gone;
  document := held.document;
  if gone is not null then return; end if;
  if batch is null then
    started := app.start_course(course_id);
    return;
  end if;
  done := case kind when 'process_document' then document.status in ('processed', 'completed') else document.status = 'completed' end;
  if done then return; end if;
  if kind = 'process_document' then
    update app.documents d set status = 'processing', error = null where d.id = document_id;
  end if;
  perform app.update_course_progress(course_id, kind || ':' || document_id, 'in_progress', document.filename);
end $$;

-- Stores what was made of a file, and enqueues the job of its summary, once: an attempt that comes after one that has done it changes
-- nothing. Gives why the document is not wanted any more, or null. The enqueue is of this transaction and not of the job's
-- completion, because a batch whose last job was cancelled takes no more members: that must not kill the job.
create function app.store_document(course_id uuid, document_id uuid, batch bigint, content text, headings text[], chunks text[], tokens int[])
returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  held record;
begin
  held := app.hold_document(course_id, document_id, batch);
  if held.gone is not null or (held.document).status <> 'processing' then return held.gone; end if;
  delete from app.document_chunks c where c.document_id = store_document.document_id;
  update app.documents d set text = content, headings = store_document.headings, processed_content = null, status = 'processed' where d.id = document_id;
  insert into app.document_chunks (document_id, ordinal, text, tokens_estimate)
    select document_id, c.place, c.content, c.tokens from unnest(chunks, tokens) with ordinality c(content, tokens, place);
  perform app.update_course_progress(course_id, 'process_document:' || document_id, 'completed', (held.document).filename,
    metadata => jsonb_build_object('chunks', cardinality(chunks)));
  perform howdah.enqueue('summarize_document', jsonb_build_object('course_id', course_id, 'document_id', document_id),
    subject => 'course:' || course_id, batch => batch);
  return null;
exception when sqlstate 'JB007' then
  return format('batch %s is over: its job structure_course was cancelled', batch);
end $$;

-- Stores a document's summary. Gives why it is not wanted any more, or null.
create function app.store_summary(course_id uuid, document_id uuid, batch bigint, summary text)
returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  held record;
begin
  held := app.hold_document(course_id, document_id, batch);
  if held.gone is not null or (held.document).status <> 'processed' then return held.gone; end if;
  update app.documents d set processed_content = summary, status = 'completed' where d.id = document_id;
  perform app.update_course_progress(course_id, 'summarize_document:' || document_id, 'completed', (held.document).filename);
  return null;
end $$;

-- Says that nothing will come of a document, and why, in words for people.
create function app.fail_document(kind text, course_id uuid, document_id uuid, batch bigint, reason text)
returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  held record;
begin
  held := app.hold_document(course_id, document_id, batch);
  if held.gone is not null or (held.document).status = 'completed' then return held.gone; end if;
  update app.documents d set status = 'failed', error = reason where d.id = document_id;
  perform app.update_course_progress(course_id, kind || ':' || document_id, 'failed', (held.document).filename, error_message => reason);
  if kind = 'process_document' then
    perform app.update_course_progress(course_id, 'summarize_document:' || document_id, 'skipped', (held.document).filename);
  end if;
  return null;
end $$;

-- Which versions of its documents a course consists of at this moment.
create function app.documents_version(course_id uuid) returns text language sql stable as $$
select coalesce(md5(string_agg(d.id || ' ' || d.xmin, ',' order by d.id)), '') from app.documents d where d.course_id = documents_version.course_id $$;

-- Begins to structure a course whose batch is over. Documents whose job ended without a word here (out of time, its worker died,
-- cancelled) get the reason that the engine knows. Gives what the outline is made from.
create function app.begin_structure(course_id uuid, batch bigint, out gone text, out done boolean, out title text, out documents jsonb, out version text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  late record;
begin
  select c.title, coalesce(c.structured_by = batch, false) into title, done from app.courses c where c.id = course_id for no key update;
  if not found then
    gone := app.gone('course', course_id);
    return;
  end if;
  if not done then
    for late in
      select d.id, case d.status when 'processed' then 'summarize_document' else 'process_document' end as kind, coalesce(e.reason, 'its job has ended, and left no reason') as reason
      from app.documents d left join lateral (
        select coalesce(s.error, s.cancel_reason, s.state) as reason from howdah.job_status s
        where s.subject = 'course:' || course_id and s.id > batch and s.payload ->> 'document_id' = d.id::text and s.state in ('dead', 'cancelled')
        order by s.id desc limit 1) e on true
      where d.course_id = begin_structure.course_id and d.batch = begin_structure.batch and d.status in ('queued', 'processing', 'processed') order by d.id
    loop
      perform app.fail_document(late.kind, course_id, late.id, batch, late.reason);
    end loop;
    perform app.update_course_progress(course_id, 'structure_course', 'in_progress');
  end if;
  select coalesce(jsonb_agg(jsonb_build_object('id', d.id, 'filename', d.filename, 'status', d.status, 'error', d.error,
                                               'headings', d.headings, 'summary', d.processed_content) order by d.created_at, d.id), '[]')
    into documents from app.documents d where d.course_id = begin_structure.course_id;
  version := app.documents_version(course_id);
end $$;

-- Stores the outline, and the status that follows from what is missing. Nothing is stored, and `status` is null, if the documents are
-- not those any more that it was made from: another start of this course may have stored a newer one.
create function app.store_outline(course_id uuid, batch bigint, version text, outline jsonb, counts jsonb, out gone text, out status text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  usable  int;
  missing int;
  open    boolean;
begin
  perform from app.courses c where c.id = course_id for no key update;
  if not found then
    gone := app.gone('course', course_id);
    return;
  end if;
  if app.documents_version(course_id) <> version then return; end if;
  select count(*) filter (where d.status = 'completed'), count(*) filter (where d.status <> 'completed'),
         coalesce(bool_or(d.status in ('queued', 'processing', 'processed') and app.is_live(d.batch)), false)
    into usable, missing, open from app.documents d where d.course_id = store_outline.course_id;
  status := case when open then 'processing' when usable = 0 then 'failed' when missing > 0 then 'incomplete' else 'completed' end;
  update app.courses c
    set outline = store_outline.outline, generation_status = status, structured_by = batch, has_documents = usable + missing > 0,
        generation_progress = jsonb_set(c.generation_progress, '{steps}', app.steps_of(c.id, c.generation_progress -> 'steps'))
    where c.id = course_id;
  perform app.update_course_progress(course_id, 'structure_course', 'completed',
    case when usable + missing = 0 then 'the course has no documents' when missing > 0 then format('%s of %s documents are missing', missing, usable + missing)
         else format('made from %s documents', usable) end,
    metadata => jsonb_build_object('jobs', counts, 'documents', usable, 'missing', missing));
end $$;

-- What the handlers do here, they do by these functions, and by nothing else; nobody else may, until you grant it.
revoke all on function app.update_course_progress, app.is_live, app.start_course, app.begin_step, app.store_document, app.store_summary,
  app.fail_document, app.begin_structure, app.store_outline from public;
grant execute on function app.update_course_progress, app.start_course, app.begin_step, app.store_document, app.store_summary,
  app.fail_document, app.begin_structure, app.store_outline to app_handlers;
