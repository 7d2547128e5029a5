-- Kinds whose jobs have failed and wait to be tried again.
select f.kind, f.jobs, f.cut, f.error, f.next_in from howdah.failing() f limit 20
