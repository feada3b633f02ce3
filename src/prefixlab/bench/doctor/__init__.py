"""Can this number be trusted: one page per run, with a grade."""
