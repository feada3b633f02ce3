"""The report people forward: runs as one HTML file that needs nothing else. `page.py` says what is on it."""
