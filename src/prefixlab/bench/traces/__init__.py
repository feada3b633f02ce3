"""Recorded traffic: read, fitted, analysed, made anew, written and fetched."""
