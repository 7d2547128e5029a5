-- The group roles of the engine, which of them this login is a member of, and whether it is above all of them.
select current_user::text as login, (select r.rolsuper from pg_roles r where r.rolname = current_user) as superuser,
  (select pg_get_userbyid(c.relowner) = current_user from pg_class c where c.oid = 'howdah.jobs'::regclass) as owner,
  array(select r.rolname::text from pg_roles r where r.rolname in ('howdah_producer', 'howdah_worker', 'howdah_reader', 'howdah_admin') order by 1) as roles,
  array(select r.rolname::text from pg_roles r where r.rolname in ('howdah_producer', 'howdah_worker', 'howdah_reader', 'howdah_admin')
    and pg_has_role(current_user, r.oid, 'member') order by 1) as memberships
