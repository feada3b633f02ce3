"""Calibration: how far this client, on this machine, can be believed."""
