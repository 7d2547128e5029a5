-- The newest migration of the engine that was applied, and the oldest worker that may run on it.
select (select max(version) from howdah.migrations where source = 'howdah') as version, s.min_worker_version
from howdah.settings s
