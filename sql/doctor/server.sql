-- The server: its release, whether it is a standby, autovacuum's settings, how full the queue of notifications is.
select current_setting('server_version') as version, current_setting('server_version_num')::int as number, pg_is_in_recovery() as standby,
  current_setting('autovacuum')::bool as autovacuum, current_setting('track_counts')::bool as track_counts, pg_notification_queue_usage() as notify_queue
