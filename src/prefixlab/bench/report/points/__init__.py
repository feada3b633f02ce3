"""The points of `bench serve` and `bench sweep`, shown: as a block, a table, keys of a file, side by side."""
