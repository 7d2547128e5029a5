-- Lets queue $1 be claimed again, and tells whether it was paused.
with before as materialized (select exists (select from howdah.queues q where q.name = $1 and q.paused_at is not null) as paused)
select before.paused, howdah.resume($1) from before
