"""Ways to put a request to a server: dialects (what the bytes say) and the transport that carries them."""
