"""Requests that wait for each other and go on from each other's answers, in a worker process."""
