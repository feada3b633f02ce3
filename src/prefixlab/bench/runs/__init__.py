"""What a benchmark does, step by step: one file per kind of run."""
