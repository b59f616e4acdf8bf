"""A folder for PYTHONPATH: whatever Python starts with it there is on a clock of its own."""
