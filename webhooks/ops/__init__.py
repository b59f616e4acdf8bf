"""The operators' pages under /ops: the state of the mirror, its causes, and buttons for safe repairs."""
