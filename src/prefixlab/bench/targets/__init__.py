"""The server under measurement: what its APIs say (without I/O), what it is, and how it is made cold."""
