-- Notes why schedule $1, as it was read under version $2, cannot fire: $3.
update howdah.schedules s set problem = $3, problem_at = clock_timestamp() where s.name = $1 and s.version = $2
