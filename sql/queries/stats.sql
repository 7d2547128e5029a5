-- Live jobs by queue, kind and state. Reads the whole table.
select queue, kind, state, jobs from howdah.stats()
