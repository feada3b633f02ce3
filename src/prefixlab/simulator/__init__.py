"""Imagined machines: the same scheduler and cache over a runner whose steps only take time."""
