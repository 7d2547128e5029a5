-- Who may do what in the schema howdah. `howdah migrate` applies this after the migrations, every time; what is right
-- already is left alone, so that a second run only reads. `howdah migrate --no-roles` applies private.sql instead.
--
-- Give a role of yours a part of it: `create role shop login in role howdah_producer`.
--   howdah_owner     owns the schema and all that is in it. Nobody logs in as it; who migrates is a member of it.
--   howdah_producer  enqueues, and reads nothing. A handler's own login is one, too: HOWDAH_POOL_DATABASE_URL. Hence it may call
--                    `complete`, as the last act of a handler's transaction; who does not hold the job's lease is refused there.
--   howdah_worker    what the statements in sql/queries need, in Python or any other language. It owns nothing: an owner passes
--                    row-level security. It can neither change the schema nor the settings, nor what has been migrated.
--   howdah_reader    reads job_status, where payload keys that their kind declares secret are ***.
--   howdah_admin     enqueues, reads everything whole, and acts on jobs, queues and settings; it writes no table of jobs.
--
-- PUBLIC and these four get exactly what stands here, and lose what does not; grants to other roles are their giver's own.
-- What is not listed is the owner's alone, days of history too: they are read through their parent.
do $$
#variable_conflict use_column
declare
  --  X call    r select    a insert    w update    d delete    U look names up in    . nothing
  matrix constant text := '
                            producer  worker  reader  admin
      (schema)              U         U       U       U

      enqueue               X         X       .       X
      enqueue_many          X         X       .       X
      enqueue_coalesced     X         X       .       X
      enqueue_payloads      X         X       .       X
      create_batch          X         X       .       X

      job_status            .         r       r       r
      schedule_status       .         r       r       r
      masked                .         X       X       X
      stats                 .         X       X       X
      explain               .         X       X       X
      watch                 .         X       X       X
      is_idle               .         X       X       X
      depth                 .         X       X       X
      fronts                .         X       X       X
      failing               .         X       X       X
      limit_lines           .         X       X       X
      lacks                 .         X       X       X

      cancel                .         .       .       X
      cancel_subject        .         .       .       X
      retry                 .         .       .       X
      reschedule            .         .       .       X
      pause                 .         .       .       X
      resume                .         .       .       X
      set_limit             .         .       .       X
      remove_limit          .         .       .       X
      register              .         X       .       X
      declare_schedules     .         X       .       X
      schedule              .         .       .       X
      unschedule            .         .       .       X
      pause_schedule        .         .       .       X
      resume_schedule       .         .       .       X

      claim                 .         X       .       .
      start                 .         X       .       .
      complete              X         X       .       .
      fail                  .         X       .       .
      release               .         X       .       .
      beat                  .         X       .       .

      claim_ready           .         X       .       .
      find_behind           .         X       .       .
      claim_suspect         .         X       .       .
      worker_beat           .         X       .       .
      ack                   .         X       .       .
      ack_completed         .         X       .       .
      ack_with              .         X       .       .
      ack_fate              .         X       .       .
      steps_of              .         X       .       .
      note_started          .         X       .       .
      note_progress         .         X       .       .
      forsake               .         X       .       .
      with_error            .         X       .       .
      without_secrets       .         X       .       .
      keep_step             .         X       .       .
      apply_signals         .         X       .       .
      bury_cancelled        .         X       .       .
      note_ended            .         X       .       .
      enqueue_unless_held   .         X       .       .
      resolve               .         X       .       .
      end_batch             .         X       .       .
      settle                .         X       .       .
      promote               .         X       .       .
      coalesce_events       .         X       .       .
      rescue                .         X       .       .
      fire_schedule         .         X       .       .
      make_partitions       .         X       .       .
      drop_partitions       .         X       .       .
      try_lock              .         X       .       .
      take_lock             .         X       .       .
      notify                .         X       .       .
      wake                  .         X       .       .
      wake_all              .         X       .       .
      claim_limited         .         X       .       .
      acquire               .         X       .       .
      keys_of               .         X       .       .
      limit_for             .         X       .       .
      lanes_at              .         X       .       .
      return_tokens         .         X       .       .
      with_standing         .         X       .       .
      standing_among        .         X       .       .
      send_to_gates         .         X       .       .
      sweep_limits          .         X       .       .

      jobs                  .         rawd    .       r
      jobs_id_seq           .         r       .       .
      job_history           .         ra      .       r
      steps                 .         ra      .       r
      events                .         rd      .       r
      signals               .         rd      .       r
      waiters               .         rwd     .       r
      dependencies          .         rwd     r       r
      batches               .         rd      r       r
      batch_ends            .         rawd    r       r
      workers               .         rawd    r       r
      limits                .         r       r       r
      holds                 .         ra      r       r
      buckets               .         rawd    r       r
      openings              .         rawd    r       r
      leader                .         rw      r       r
      queues                .         r       r       r
      kinds                 .         r       r       r
      schedules             .         rw      .       r
      settings              .         r       r       rw
      locks                 .         rw      .       .
      migrations            .         r       r       r
  ';
  head  constant text[] := regexp_split_to_array(trim(split_part(matrix, e'\n', 2)), '\s+');
  roles constant text[] := (select array_agg('howdah_' || h) from unnest(head) h);
  owner constant text   := 'howdah_owner';
  was   constant text   := current_setting('role');
  role  text;
  moves text[];
  steps text[];
  step  text;
begin
  -- The roles belong to the whole server: another database's migration may make them at the same moment.
  foreach role in array owner || roles loop
    continue when to_regrole(role) is not null;
    begin
      execute format('create role %I nologin', role);
    exception
      when duplicate_object or unique_violation then null;
      when insufficient_privilege then
        raise exception using errcode = '42501', message = format('role %s is missing, and %I may not make it', role, current_user),
          hint = format('alter role %I createrole; or have somebody who may run what howdah migrate --sql prints; or use --no-roles', current_user);
    end;
  end loop;

  -- What the owner does not own yet.
  select array_agg(format('alter %s %s owner to %I', o.class, o.name, owner) order by o.class <> 'schema') into moves
  from (select 'schema' as class, 'howdah' as name, n.nspowner as holder from pg_namespace n where n.nspname = 'howdah'
        union all
        select case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence' else 'table' end,
               c.oid::regclass::text, c.relowner
        from pg_class c where c.relnamespace = 'howdah'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S')
          -- a column's sequence goes with its table
          and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i') and c.relkind = 'S')
        union all
        select 'routine', p.oid::regprocedure::text, p.proowner from pg_proc p where p.pronamespace = 'howdah'::regnamespace
        union all
        select 'type', t.oid::regtype::text, t.typowner
        from pg_type t where t.typnamespace = 'howdah'::regnamespace and t.typtype in ('d', 'e', 'r')) o
  where o.holder <> to_regrole(owner);

  with cell as (
    select l.word[1] as name, r.role, r.letters
    from (select regexp_split_to_array(trim(line), '\s+') as word from regexp_split_to_table(matrix, '\n') line) l
    cross join lateral unnest(roles, l.word[2:]) r(role, letters)
    where l.word[2] is not null and l.word[1] <> head[1]),
  wanted as (
    select c.name, c.role, k.privilege from cell c
    join (values ('r', 'SELECT'), ('a', 'INSERT'), ('w', 'UPDATE'), ('d', 'DELETE'), ('U', 'USAGE'), ('X', 'EXECUTE')) k(letter, privilege)
      on position(k.letter in c.letters) > 0),
  object as (
    select 'schema' as class, '(schema)' as name, 'howdah' as called, coalesce(n.nspacl, acldefault('n', n.nspowner)) as acl
    from pg_namespace n where n.nspname = 'howdah'
    union all
    select case c.relkind when 'S' then 'sequence' else 'table' end, c.relname, c.oid::regclass::text,
           coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's'::"char" else 'r' end, c.relowner))
    from pg_class c where c.relnamespace = 'howdah'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S')
    union all
    select 'routine', p.proname, p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner))
    from pg_proc p where p.pronamespace = 'howdah'::regnamespace),
  should as (
    select o.class, o.called, w.role, w.privilege from object o join wanted w on w.name = o.name and (w.privilege = 'EXECUTE') = (o.class = 'routine')),
  is_so as (
    select o.class, o.called, case a.grantee when 0 then 'public' else a.grantee::regrole::text end as role, a.privilege_type as privilege
    from object o cross join lateral aclexplode(o.acl) a
    where a.grantee = 0 or a.grantee = any (select to_regrole(r) from unnest(roles) r)),
  policy as (          -- who has any right on a table sees all its rows
    select c.oid::regclass::text as called, c.relrowsecurity, array_agg(distinct s.role) filter (where s.role is not null) as roles,
           (select array_agg(r.role::regrole::text order by r.role::regrole::text) from pg_policy p cross join lateral unnest(p.polroles) r(role)
            where p.polrelid = c.oid and p.polname = 'granted') as present
    from pg_class c left join should s on s.called = c.oid::regclass::text and s.class = 'table'
    where c.relnamespace = 'howdah'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
    group by c.oid, c.relrowsecurity),
  todo as (
    select 1 as place, format('revoke %s on %s %s from %s', string_agg(privilege, ', '), class, called, role) as step
    from (table is_so except table should) x group by class, called, role
    union all
    select 2, format('grant %s on %s %s to %s', string_agg(privilege, ', '), class, called, role)
    from (table should except table is_so) x group by class, called, role
    union all
    select 3, format('alter table %s enable row level security', called) from policy where not relrowsecurity
    union all
    select 4, format('drop policy granted on %s', called) from policy where present is not null and present is distinct from roles
    union all
    select 5, format('create policy granted on %s to %s using (true)', called, array_to_string(roles, ', '))
    from policy where roles is not null and present is distinct from roles
    union all
    select 6, format('alter default privileges for role %I revoke execute on functions from public', owner)
    where not exists (select from pg_default_acl d where d.defaclrole = to_regrole(owner) and d.defaclnamespace = 0 and d.defaclobjtype = 'f'))
  select array_agg(t.step order by t.place, t.step) into steps from todo t;

  if moves is null and steps is null then return; end if;

  -- In release 16 and later a member may lack the right to act as the role; whoever made the role can give it.
  if not pg_has_role(owner, case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end) then
    begin
      execute format('grant %I to current_user', owner);
    exception
      when unique_violation then null;                         -- the same grant in another database
      when insufficient_privilege then
        raise exception using errcode = '42501', message = format('%I is no member of %s', current_user, owner),
          hint = format('grant %I to %I; or use --no-roles', owner, current_user);
    end;
  end if;
  foreach step in array coalesce(moves, '{}') loop execute step; end loop;
  perform set_config('role', owner, true);
  foreach step in array coalesce(steps, '{}') loop execute step; end loop;
  perform set_config('role', was, true);
end $$;
