-- Every queue that somebody works on, that has live jobs, or that was ever paused. Reads all live jobs.
select name from (
  select unnest(w.queues) from howdah.workers w union select q.name from howdah.queues q union select j.queue from howdah.stats() j) known(name)
order by name
