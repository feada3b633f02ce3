"""The load generator: sends requests at their times and stamps what comes back."""
