"""Where KV lives: the radix tree over pages, the pages themselves, eviction, and the manager the scheduler talks to.

Holds page numbers, never bytes. Synchronous and deterministic; recency is a counter, so it needs no clock.
"""
