"""Did the cache do it: what was expected, what answers said, what the server counted, reconciled."""
