"""Names that an attacker plants where somebody else's SQL may look them up: functions, operators, aggregates, views and types.

Whatever of it is called with other rights than the attacker's own leaves a mark that no rollback takes back: its sequence moves.
"""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING

from howdah.queries import sql_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg

#: What arguments of our own calls are of.
TYPES = (
    "text", "bigint", "integer", "smallint", "jsonb", "timestamp with time zone", "interval", "boolean", "double precision", "numeric", "name",
    "date", "oid", '"char"', "regclass",
)  # fmt: skip
_SCALARS = ("text", "bigint", "integer", "jsonb", "interval")
_AGGREGATES = (
    "array_agg",
    "count",
    "string_agg",
    "jsonb_object_agg",
    "jsonb_agg",
    "bool_or",
    "bool_and",
    "max",
    "min",
    "sum",
)
_POLYMORPHIC = re.compile(r'any(?:compatible)?(?:array|element|nonarray)?(?![a-z])|"any"')

_PLANT = """
create or replace function pg_temp.plant(statements text[]) returns int language plpgsql as $$
declare
  statement text;
  planted   int := 0;
begin
  foreach statement in array statements loop
    begin
      execute statement;
      planted := planted + 1;
    exception when others then null;       -- a signature that no function of ours can have
    end;
  end loop;
  return planted;
end $$
"""


async def plant(attacker: asyncpg.Connection, schema: str) -> int:
    """Plant everything whose name our SQL uses, in a schema in which the attacker may create; gives how many things there are."""
    me: str = await attacker.fetchval("select current_user")
    await attacker.execute(f"{_PLANT}; create table if not exists {schema}.marks (name text)")
    names = await used_names(attacker)
    functions = await attacker.fetch(
        """select p.proname as name, pg_get_function_arguments(p.oid) as arguments, pg_get_function_result(p.oid) as result,
          p.proretset as many, p.prokind = 'a' as aggregates
        from pg_proc p where p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any ($1) and p.prokind in ('f', 'a', 'w')""",
        sorted(names),
    )
    operators = await attacker.fetch(
        """select o.oprname as name, o.oprleft::regtype::text as left, o.oprright::regtype::text as right, o.oprresult::regtype::text as result
        from pg_operator o where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprkind = 'b'"""
    )
    statements = [f"grant all on {schema}.marks to public"]
    for row in functions:
        if not row["aggregates"]:
            statements += _function(schema, me, row["name"], row["arguments"], row["result"])
    statements += _aggregates(schema, me)
    for place, row in enumerate(operators):
        statements += _operator(schema, me, place, row["name"], (row["left"], row["right"]), row["result"])
    planted: int = await attacker.fetchval("select pg_temp.plant($1)", statements)
    return planted


async def used_names(connection: asyncpg.Connection) -> set[str]:
    """Give every name that is called in the bodies of our functions and in our statements."""
    bodies = await connection.fetchval(
        "select string_agg(p.prosrc, ' ') from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('howdah', 'app')"
    )
    files = " ".join(path.read_text(encoding="utf-8") for path in sql_folder().rglob("*.sql"))
    return set(re.findall(r"\b([a-z_][a-z0-9_]*)\s*\(", f"{bodies} {files}"))


async def plant_tables(attacker: asyncpg.Connection, schema: str) -> int:
    """Plant a view in the place of every table of ours, and a type in the place of every one that our SQL casts to."""
    me: str = await attacker.fetchval("select current_user")
    await attacker.execute(_PLANT)
    relations = await attacker.fetch(
        "select distinct relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname in ('howdah', 'app') and relkind in ('r', 'p', 'v')"
    )
    mark = "public.mark_for_tables"
    statements = ["create sequence if not exists public.taken_by_tables", "grant all on sequence public.taken_by_tables to public",
                  f"""create or replace function {mark}() returns boolean language plpgsql volatile as $mark$ {_body("public", me, 'taken_by_tables', 'return true')} $mark$"""]  # fmt: skip
    temporary = "temp" if schema == "pg_temp" else ""
    name = (lambda relation: f'"{relation}"') if temporary else (lambda relation: f'{schema}."{relation}"')
    statements += [
        f"create {temporary} view {name(row['relname'])} as select * from {mark}() taken where taken"
        for row in relations
    ]
    statements += [f'create domain {schema}."{kind}" as pg_catalog.text check ({mark}())' for kind in
                   ("text", "jsonb", "timestamptz", "regclass", "int4", "int8", "float8", "bool", "_text", "_int8")]  # fmt: skip
    planted: int = await attacker.fetchval("select pg_temp.plant($1)", statements)
    return planted


async def taken(connection: asyncpg.Connection) -> list[str]:
    """Give the names of what was called with other rights than the attacker's."""
    rows = await connection.fetch(
        "select c.relname, c.oid::regclass::text as at from pg_class c where c.relkind = 'S' and c.relname like 'taken\\_%'"
    )
    return [row["relname"] for row in rows if await connection.fetchval(f"select is_called from {row['at']}")]


def _body(schema: str, me: str, sequence: str, answer: str) -> str:
    return f"""begin
      if current_user operator(pg_catalog.<>) '{me}'::pg_catalog.name then perform pg_catalog.nextval('{schema}.{sequence}'); end if;
      {answer};
    end"""


def _function(schema: str, me: str, name: str, arguments: str, result: str) -> Iterator[str]:
    sequence = f"taken_{name}"
    yield f"create sequence {schema}.{sequence}"
    yield f"grant all on sequence {schema}.{sequence} to public"
    answer = "return" if result.upper().startswith(("SETOF", "TABLE")) or result == "void" else "return null"
    for exact_arguments, exact_result in _signatures(arguments, result):
        yield f"create function {schema}.{name}({exact_arguments}) returns {exact_result} language plpgsql as $f$ {_body(schema, me, sequence, answer)} $f$"


def _signatures(arguments: str, result: str) -> Iterator[tuple[str, str]]:
    """Give a signature as it is, and with every type of ours in the place of what takes any: such a one is the better match."""
    yield arguments, result
    if '"any"' in arguments:
        for count in (1, 2, 3):
            for types in product(_SCALARS, repeat=count):
                yield ", ".join(types), result
    elif "any" in arguments:
        for kind in TYPES:
            yield _concrete(arguments, kind), _concrete(result, kind)


def _concrete(text: str, kind: str) -> str:
    return _POLYMORPHIC.sub(
        lambda found: f"{kind}[]" if found[0].endswith("array") and "non" not in found[0] else kind, text
    )


def _aggregates(schema: str, me: str) -> Iterator[str]:
    for name in _AGGREGATES:
        sequence = f"taken_agg_{name}"
        yield f"create sequence {schema}.{sequence}"
        yield f"grant all on sequence {schema}.{sequence} to public"
        pairs = name in {"string_agg", "jsonb_object_agg"}
        for kind in TYPES:
            second = ", jsonb" if pairs else ""
            yield f'create function {schema}."step_{name}"(pg_catalog.int8, {kind}{second}) returns pg_catalog.int8 language plpgsql as $f$ {_body(schema, me, sequence, "return 0")} $f$'
            yield f'create aggregate {schema}.{name}({kind}{second}) (sfunc = {schema}."step_{name}", stype = pg_catalog.int8, initcond = 0)'


def _operator(schema: str, me: str, place: int, name: str, sides: tuple[str, str], result: str) -> Iterator[str]:
    kinds = TYPES if any("any" in side for side in sides) else ("",)
    if kinds == ("",) and not all(side.removesuffix("[]") in TYPES for side in sides):
        return
    sequence = f"taken_operator_{place}"
    yield f"create sequence {schema}.{sequence}"
    yield f"grant all on sequence {schema}.{sequence} to public"
    for kind in kinds:
        left, right, back = (_concrete(side, kind) if kind else side for side in (*sides, result))
        yield f"create function {schema}.operator_{place}({left}, {right}) returns {back} language plpgsql as $f$ {_body(schema, me, sequence, 'return null')} $f$"
        yield f"create operator {schema}.{name} (leftarg = {left}, rightarg = {right}, function = {schema}.operator_{place})"
