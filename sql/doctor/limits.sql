-- The limits: what runs under each, what waits, and for how many seconds the oldest of these has.
select l.name, l.concurrency, l.rate, l.burst, l.running, l.waiting, l.cut, l.oldest, extract(epoch from clock_timestamp() - l.set_at)::float8 as standing
from howdah.limit_lines() l
