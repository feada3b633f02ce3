"""The decoder family: rotary positions, layers, and the loop over layers. Knows no pages and no requests."""
