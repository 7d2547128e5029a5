-- Cancels queued jobs that somebody wants cancelled; gives the requests for running ones, to be compared with what this worker holds.
select job_id, by, reason from howdah.apply_signals()
