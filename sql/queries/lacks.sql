-- What the server does not have for this login, and whether the schema relies on it.
select missing, missing = 'advisory_locks' and s.advisory_locks or missing = 'notifications' and s.notifications as needed
from howdah.settings s cross join unnest(howdah.lacks()) missing
