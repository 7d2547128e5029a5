"""Releases before and after this one, as folders of migrations."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from howdah.migrate import read_migrations
from howdah.queries import sql_folder

if TYPE_CHECKING:
    from pathlib import Path

_MIGRATIONS = sql_folder() / "migrations"
NEWEST = len(read_migrations(_MIGRATIONS))
NEXT_NAME = f"{NEWEST + 1:04d}_notes"

# What a next release may do to the schema while workers of this one run: all of it only adds.
_NEXT = """
alter table howdah.jobs add column note text;
alter table howdah.job_history add column note text;
alter table howdah.workers add column place text;
alter table howdah.kinds add column colour text not null default 'white';
create table howdah.notes (id bigint generated always as identity primary key, job_id bigint not null, note text not null);
create function howdah.take_note(job_id bigint, note text) returns void language sql as $$
insert into howdah.notes (job_id, note) values (take_note.job_id, take_note.note) $$;
do $$ begin execute 'create or replace view howdah.job_status as ' || rtrim(replace(replace(pg_get_viewdef('howdah.job_status'::regclass),
  'FROM howdah.jobs j', ', j.note FROM howdah.jobs j'), 'FROM howdah.job_history h', ', h.note FROM howdah.job_history h'), ';'); end $$;
"""
# Functions that workers call all the time change under their prepared statements.
_REPLACED = """
do $$ declare f regprocedure; begin
  for f in select p.oid::regprocedure from pg_proc p
           where p.pronamespace = 'howdah'::regnamespace and p.proname in ('claim_ready', 'ack', 'enqueue_many', 'complete') loop
    execute regexp_replace(pg_get_functiondef(f), '\\mAS (\\$\\w*\\$)', 'AS \\1 -- once more' || chr(10));
  end loop;
end $$;
"""


def next_release(folder: Path) -> Path:
    """Give the migrations of a release that adds to the schema and changes functions."""
    shutil.copytree(_MIGRATIONS, folder)
    (folder / f"{NEXT_NAME}.sql").write_text(_NEXT + _REPLACED, encoding="utf-8")
    return folder


def previous_release(folder: Path) -> Path:
    """Give the migrations without the last one."""
    shutil.copytree(_MIGRATIONS, folder)
    max(folder.glob("*.sql")).unlink()
    return folder
