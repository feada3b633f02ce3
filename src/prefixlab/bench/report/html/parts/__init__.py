"""The parts of the report, in a file each: what it shows, and when there is something to show."""
