"""From captures to records: parses what a socket loop stored, after the fact and off its back."""
