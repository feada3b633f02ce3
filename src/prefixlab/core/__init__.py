"""The words every other folder speaks: requests, batches, seams, clocks, hashes, events, errors.

Owns vocabulary, not behaviour. Imports the standard library, msgspec, numpy and xxhash, and nothing of ours.
"""
