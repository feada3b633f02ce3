"""Runs that are over, read back from their folders."""
