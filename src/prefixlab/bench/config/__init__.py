"""Settings of the benchmarks, one file per concern."""
