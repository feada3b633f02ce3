"""The formats of traces: one file each, from lines to columns."""
