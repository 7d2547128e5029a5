-- Makes at most $1 due jobs claimable, and one job of all visible events of each of at most $1 ripe keys; tells how many of both, and in how
-- many seconds the next job is due and the next key is ripe (null: none), and whether any limited job may be there. One statement: an idle
-- worker asks this for ever.
select p.promoted, e.made, p.next_in as next_job, e.next_in as next_event, exists (select from howdah.openings) as limited
from howdah.promote($1) p, howdah.coalesce_events($1) e
