-- Takes from PUBLIC whatever it may do in the schema howdah: PostgreSQL lets everybody call a new function. `howdah migrate
-- --no-roles` applies this after the migrations, every time, as the schema's owner; roles.sql does the same and more.
do $$
declare
  step text;
begin
  for step in
    select format('revoke all on schema howdah from public') from pg_namespace n, aclexplode(n.nspacl) a where n.nspname = 'howdah' and a.grantee = 0
    union
    select format('revoke all on %s from public', c.oid::regclass) from pg_class c, aclexplode(c.relacl) a
    where c.relnamespace = 'howdah'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S') and a.grantee = 0
    union
    select format('revoke all on routine %s from public', p.oid::regprocedure)
    from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
    where p.pronamespace = 'howdah'::regnamespace and a.grantee = 0
  loop
    execute step;
  end loop;
end $$;
