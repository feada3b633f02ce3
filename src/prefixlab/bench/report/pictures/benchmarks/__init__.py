"""Benchmarks side by side over the concurrency: found, drawn, and told in words."""
