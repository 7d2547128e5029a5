"""`howdah doctor`: looks at everything that is known to go wrong, and says of each what to do."""
