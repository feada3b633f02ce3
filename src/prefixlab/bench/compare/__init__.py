"""Is B different from A: two sides, their differences with intervals, and one verdict."""
