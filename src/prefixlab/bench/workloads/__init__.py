"""What is asked: prompts, as pure functions of options and a seed, that know what the cache should serve."""
