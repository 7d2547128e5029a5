-- Live jobs by queue, kind and state, with the age in seconds of what waits longest. Reads all live jobs.
select queue, kind, state, jobs, extract(epoch from oldest)::float8 as oldest_seconds from howdah.stats()
