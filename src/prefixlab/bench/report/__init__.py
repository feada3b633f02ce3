"""Results for people and programs: console, JSON lines, pictures, progress. Reads, decides nothing."""
