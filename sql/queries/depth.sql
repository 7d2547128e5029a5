-- Live jobs by queue and state, `exact` or estimated, with the age in seconds of the oldest ready one.
select queue, state, jobs, exact, oldest from howdah.depth()
