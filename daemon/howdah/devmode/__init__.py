"""`howdah dev`: one file of handlers on a database of its own, reloaded on save, with a view of its jobs."""
