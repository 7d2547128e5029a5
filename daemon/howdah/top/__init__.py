"""`howdah top`: queues, workers and running jobs on a terminal, live."""
