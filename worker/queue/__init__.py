"""Wakes worker processes through Redis, which may lose its data at any time."""
