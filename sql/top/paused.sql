-- The queues that are paused.
select q.name from howdah.queues q where q.paused_at is not null
