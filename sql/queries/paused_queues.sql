-- The paused queues, since when and by whom.
select name, paused_at, paused_by from howdah.queues where paused_at is not null order by name
