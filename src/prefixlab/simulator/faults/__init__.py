"""Faults on purpose, at the edge of the simulated server's API: for teaching, and to test load generators."""
