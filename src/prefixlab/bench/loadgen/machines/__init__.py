"""The same workers on several machines: what goes there, what comes back, and what their clocks are worth."""
