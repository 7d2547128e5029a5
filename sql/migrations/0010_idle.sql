-- Whether nothing of this subject, kind and queue (null: any) is queued or runs. What is scheduled for later is queued, and so
-- is an event that has not become a job yet.
create function howdah.is_idle(subject text default null, kind text default null, queue text default null) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, howdah, pg_temp as $$
#variable_conflict use_variable
begin
  if subject is not null then          -- a statement of its own, which the index of subjects answers
    return not exists (select from howdah.jobs j where j.subject = is_idle.subject
                         and (is_idle.kind is null or j.kind = is_idle.kind) and (is_idle.queue is null or j.queue = is_idle.queue))
       and not exists (select from howdah.events e left join howdah.kinds k on k.name = e.kind where e.subject = is_idle.subject
                         and (is_idle.kind is null or e.kind = is_idle.kind) and (is_idle.queue is null or coalesce(e.queue, k.queue, 'default') = is_idle.queue));
  end if;
  return not exists (select from howdah.jobs j
                     where (is_idle.kind is null or j.kind = is_idle.kind) and (is_idle.queue is null or j.queue = is_idle.queue))
     and not exists (select from howdah.events e left join howdah.kinds k on k.name = e.kind
                     where (is_idle.kind is null or e.kind = is_idle.kind) and (is_idle.queue is null or coalesce(e.queue, k.queue, 'default') = is_idle.queue));
end $$;
