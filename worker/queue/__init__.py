"""Wakes worker processes through Redis, and shows which are alive. Redis may lose its data at any time."""
