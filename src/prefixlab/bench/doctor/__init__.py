"""Can this number be trusted? One page per run: what was looked at, what was found, a grade."""
