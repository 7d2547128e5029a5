"""The whole matrix of rights, written down a second time, and what of it a database does not keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg

NOBODY = "public"
ROLES = ("howdah_producer", "howdah_worker", "howdah_reader", "howdah_admin")

ENQUEUERS = {"howdah_producer", "howdah_worker", "howdah_admin"}
READERS = {"howdah_worker", "howdah_reader", "howdah_admin"}
ADMIN = {"howdah_admin"}
WORKER = {"howdah_worker"}

# Every function, by name, and who may call it. One that is missing here fails the test, and so does one that is gone.
FUNCTIONS: dict[str, set[str]] = {
    "enqueue": ENQUEUERS,
    "enqueue_many": ENQUEUERS,
    "enqueue_coalesced": ENQUEUERS,
    "create_batch": ENQUEUERS,
    "enqueue_payloads": ENQUEUERS,
    "argument_problem": set(),
    "wrong_argument": set(),
    "are_limits": set(),
    "field_problem": set(),
    "refuse": set(),
    "refuse_types": set(),
    "masked": READERS,
    "stats": READERS,
    "explain": READERS,
    "watch": READERS,
    "is_idle": READERS,
    "depth": READERS,
    "fronts": READERS,
    "failing": READERS,
    "limit_lines": READERS,
    "lacks": READERS,
    "try_lock": WORKER,
    "take_lock": WORKER,
    "notify": WORKER,
    "lanes": set(),
    "cancel": ADMIN,
    "cancel_subject": ADMIN,
    "retry": ADMIN,
    "reschedule": ADMIN,
    "pause": ADMIN,
    "resume": ADMIN,
    "set_limit": ADMIN,
    "remove_limit": ADMIN,
    "register": ADMIN | WORKER,
    "declare_schedules": ADMIN | WORKER,
    "schedule": ADMIN,
    "unschedule": ADMIN,
    "pause_schedule": ADMIN,
    "resume_schedule": ADMIN,
    "fire_schedule": WORKER,
    "claim": WORKER,
    "start": WORKER,
    "fail": WORKER,
    "release": WORKER,
    "beat": WORKER,
    "worker_beat": WORKER,
    "ack_with": WORKER,
    "keep_step": WORKER,
    "without_secrets": WORKER,
    "note_ended": WORKER,
    "enqueue_unless_held": WORKER,
    "resolve": WORKER,
    "end_batch": WORKER,
    "settle": WORKER,
    "depend": set(),
    "join_batch": set(),
    "sql_worker": set(),
    "give_back": set(),
    "given_back": set(),
    "remember_kinds": set(),
    "humane": set(),
    "last_error": set(),
    "explain_running": set(),
    "explain_waiting": set(),
    "explain_ready": set(),
    "explain_limited": set(),
    "claim_ready": WORKER,
    "find_behind": WORKER,
    "claim_suspect": WORKER,
    "complete": WORKER | {"howdah_producer"},
    "ack": WORKER,
    "ack_completed": WORKER,
    "ack_fate": WORKER,
    "steps_of": WORKER,
    "note_started": WORKER,
    "note_progress": WORKER,
    "forsake": WORKER,
    "with_error": WORKER,
    "apply_signals": WORKER,
    "bury_cancelled": WORKER,
    "promote": WORKER,
    "coalesce_events": WORKER,
    "rescue": WORKER,
    "make_partitions": WORKER,
    "drop_partitions": WORKER,
    "wake": WORKER,
    "wake_all": WORKER,
    "claim_limited": WORKER,
    "acquire": WORKER,
    "keys_of": WORKER,
    "limit_for": WORKER,
    "lanes_at": WORKER,
    "return_tokens": WORKER,
    "with_standing": WORKER,
    "standing_among": WORKER,
    "send_to_gates": WORKER,
    "sweep_limits": WORKER,
    "apply_standing": set(),
    "open": set(),
    "open_lines": set(),
    "take_gate": set(),
    "mind_gates": set(),
    "open_gate": set(),
}

READ = "SELECT"
WRITE = "SELECT INSERT UPDATE DELETE"
# Every table, view and sequence, and who may do what. Days of history are as DAY.
RELATIONS: dict[str, dict[str, str]] = {
    "jobs": {"howdah_worker": WRITE, "howdah_admin": READ},
    "job_history": {"howdah_worker": "SELECT INSERT", "howdah_admin": READ},
    "events": {"howdah_worker": "SELECT DELETE", "howdah_admin": READ},
    "signals": {"howdah_worker": "SELECT DELETE", "howdah_admin": READ},
    "waiters": {"howdah_worker": "SELECT UPDATE DELETE", "howdah_admin": READ},
    "steps": {"howdah_worker": "SELECT INSERT", "howdah_admin": READ},
    "dependencies": {"howdah_worker": "SELECT UPDATE DELETE", "howdah_reader": READ, "howdah_admin": READ},
    "batches": {"howdah_worker": "SELECT DELETE", "howdah_reader": READ, "howdah_admin": READ},
    "batch_ends": {"howdah_worker": WRITE, "howdah_reader": READ, "howdah_admin": READ},
    "workers": {"howdah_worker": WRITE, "howdah_reader": READ, "howdah_admin": READ},
    "limits": dict.fromkeys(READERS, READ),
    "holds": dict.fromkeys(READERS, READ) | {"howdah_worker": "SELECT INSERT"},
    "buckets": dict.fromkeys(READERS, READ) | {"howdah_worker": WRITE},
    "openings": dict.fromkeys(READERS, READ) | {"howdah_worker": WRITE},
    "leader": {"howdah_worker": "SELECT UPDATE", "howdah_reader": READ, "howdah_admin": READ},
    "queues": dict.fromkeys(READERS, READ),
    "kinds": dict.fromkeys(READERS, READ),
    "schedules": {"howdah_worker": "SELECT UPDATE", "howdah_admin": READ},
    "settings": dict.fromkeys(READERS, READ) | {"howdah_admin": "SELECT UPDATE"},
    "locks": {"howdah_worker": "SELECT UPDATE"},
    "migrations": dict.fromkeys(READERS, READ),
    "job_status": dict.fromkeys(READERS, READ),
    "openings_id_seq": {},
    "schedule_status": dict.fromkeys(READERS, READ),
    "jobs_id_seq": {"howdah_worker": READ},
    "workers_id_seq": {},
    "signals_id_seq": {},
    "events_id_seq": {},
}
DAY: dict[str, str] = {}
VIEWS = {"job_status"}
#: Types that are no table's row: none. PUBLIC may use a new one, until somebody takes that away.
TYPES: set[str] = set()


async def wrong_rights(connection: asyncpg.Connection) -> list[str]:
    """Tell every difference between what the database grants and the tables above, for every role and for PUBLIC."""
    everybody = [NOBODY, *ROLES]
    wrong = []
    relations = await connection.fetch(
        """select r.role, c.relname as name, c.relispartition as is_day, c.relkind = 'S' as is_sequence, string_agg(p.privilege, ' ') as has
        from unnest($1::text[]) r(role) cross join pg_class c
        cross join unnest(string_to_array(case c.relkind when 'S' then 'SELECT USAGE UPDATE'
          else 'SELECT INSERT UPDATE DELETE TRUNCATE REFERENCES TRIGGER' end, ' ')) p(privilege)
        where c.relnamespace = 'howdah'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
          and case c.relkind when 'S' then has_sequence_privilege(r.role, c.oid, p.privilege)
              else has_table_privilege(r.role, c.oid, p.privilege)
                or p.privilege not in ('DELETE', 'TRUNCATE', 'TRIGGER') and has_any_column_privilege(r.role, c.oid, p.privilege) end
        group by 1, 2, 3, 4""",
        everybody,
    )
    has = {(row["role"], row["name"]): set(row["has"].split()) for row in relations}
    names = await connection.fetch(
        """select relname as name, relispartition as is_day from pg_class
        where relnamespace = 'howdah'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f', 'S')"""
    )
    for name, is_day in names:
        if not is_day and name not in RELATIONS:
            wrong.append(f"{name} is not in this test's table")
        for role in everybody:
            listed = set((DAY if is_day else RELATIONS.get(name, {})).get(role, "").split())
            if listed != has.get((role, name), set()):
                wrong.append(f"{role} has {has.get((role, name))} on {name}, listed: {listed}")
    wrong += [f"{name} is gone" for name in RELATIONS.keys() - {row["name"] for row in names}]

    functions = await connection.fetch(
        """select p.proname as name, p.oid::regprocedure::text as function,
          array(select r from unnest($1::text[]) r where has_function_privilege(r, p.oid, 'EXECUTE')) as may
        from pg_proc p where p.pronamespace = 'howdah'::regnamespace""",
        everybody,
    )
    for row in functions:
        if row["name"] not in FUNCTIONS:
            wrong.append(f"{row['function']} is not in this test's table")
        elif set(row["may"]) != FUNCTIONS[row["name"]]:
            wrong.append(f"{row['function']} may be called by {row['may']}, listed: {sorted(FUNCTIONS[row['name']])}")
    types = await connection.fetch(
        """select t.typname as name from pg_type t left join pg_class c on c.oid = t.typrelid
        where t.typnamespace = 'howdah'::regnamespace and t.typtype <> 'b' and coalesce(c.relkind, 'c') = 'c'
        or t.typnamespace = 'howdah'::regnamespace and t.typtype = 'b' and t.typelem = 0"""
    )
    wrong += [f"type {row['name']} is not in this test's table" for row in types if row["name"] not in TYPES]
    wrong += [f"{name}() is gone" for name in FUNCTIONS.keys() - {row["name"] for row in functions}]

    for role in everybody:
        rights = await connection.fetchrow(
            """select has_schema_privilege($1, 'howdah', 'usage') as usage, has_schema_privilege($1, 'howdah', 'create') as create,
            exists (select from pg_auth_members m where m.member::regrole::text = $1) as member""",
            role,
        )
        if tuple(rights) != (role in ROLES, False, False):
            wrong.append(f"{role} on the schema (usage, create), and is it a member of others: {tuple(rights)}")
    return wrong + await unprotected(connection)


async def unprotected(connection: asyncpg.Connection) -> list[str]:
    """Tell which tables lack row-level security, and whose rows a role with rights would not see, or one without would."""
    rows = await connection.fetch(
        """select c.relname as name, c.relrowsecurity as on, c.relforcerowsecurity as forced,
          array(select concat_ws(' ', p.polname, p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)) from pg_policy p
                where p.polrelid = c.oid) as policies,
          array(select r::regrole::text from pg_policy p cross join unnest(p.polroles) r where p.polrelid = c.oid) as roles
        from pg_class c where c.relnamespace = 'howdah'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition"""
    )
    return [
        f"row-level security of {row['name']}: {dict(row)}"
        for row in rows
        if (row["on"], row["forced"], row["policies"]) != (True, False, ["granted * t true"])
        or set(row["roles"]) != set(RELATIONS.get(row["name"], {}))
    ]


async def foreign_objects(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch(
        """select nspname from pg_namespace where nspname = 'howdah' and nspowner <> 'howdah_owner'::regrole
        union all select relname from pg_class where relnamespace = 'howdah'::regnamespace and relowner <> 'howdah_owner'::regrole
        union all select proname from pg_proc where pronamespace = 'howdah'::regnamespace and proowner <> 'howdah_owner'::regrole
        union all select typname from pg_type where typnamespace = 'howdah'::regnamespace and typowner <> 'howdah_owner'::regrole"""
    )
    return [row[0] for row in rows]
