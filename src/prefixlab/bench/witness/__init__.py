"""What is seen of the server beside the requests while a run is under way."""
