"""Attention over paged KV: where each token of a step lies (`plan.py`), and the products (`paged.py`)."""
