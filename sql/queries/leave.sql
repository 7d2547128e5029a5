-- Takes worker $1's row away, unless it still holds jobs: then the row stays, its beat made old, and any other worker rescues them at once.
with held as (select exists (select from howdah.jobs j where j.leased_by = $1) as some),
gone as (delete from howdah.workers w using held where w.id = $1 and not held.some)
update howdah.workers w set beat_at = 'epoch', sleeps = false from held where w.id = $1 and held.some
