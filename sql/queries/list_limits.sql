-- The limits, with the keys that jobs hold under each, the jobs that hold them, and those that wait in their lines: of very many not all are
-- counted, which `waiting_more` tells.
select l.name, l.concurrency, l.rate, l.burst, l.keys, l.running, l.waiting, l.cut as waiting_more from howdah.limit_lines() l
