"""Results of other clients, and ours, read as runs; one file per client, each knows its own definitions."""
