"""Everything that is drawn into an image file; `style.py` says how all of it looks."""
