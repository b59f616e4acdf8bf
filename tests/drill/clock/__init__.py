"""A folder for PYTHONPATH: it gives a Python process its own clock."""
