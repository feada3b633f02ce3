"""The socket loop: sends planned requests at their times, stamps what comes back, understands nothing."""
