"""Several arms measured in turns, so that what differs between them is not the hour of the day."""
