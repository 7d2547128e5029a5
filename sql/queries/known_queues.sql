-- Every queue that somebody works on, that a kind has as its own, that has live jobs, or that was ever paused. Reads all live jobs.
select name from (
  select unnest(w.queues) from howdah.workers w union select q.name from howdah.queues q union select j.queue from howdah.stats() j
  union select k.queue from howdah.kinds k where k.queue is not null) known(name)
order by name
