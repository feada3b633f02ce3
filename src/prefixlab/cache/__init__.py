"""Where KV lives: the radix tree over pages, the pages themselves, eviction, and the manager of it all.

The scheduler talks to `manager.py` only. Holds page numbers, never bytes. Synchronous and deterministic;
recency is a counter, so it needs no clock.
"""
