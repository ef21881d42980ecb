"""Measurements: everything is a ratio against something else of the same run, on the same machine."""
