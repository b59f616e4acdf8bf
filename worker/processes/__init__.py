"""Processes: the lanes and their supervisor, the clock, the embedded Valkey."""
