-- Live jobs by queue, kind and state, with the age of the oldest. Reads the whole table.
select queue, kind, state, jobs, oldest from howdah.stats()
