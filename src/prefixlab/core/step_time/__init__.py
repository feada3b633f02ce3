"""How long a step takes: its shape, models that turn a shape into seconds, the file they are kept in."""
