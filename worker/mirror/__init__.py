"""The mirror: how states get into it, and how long what it held is kept."""
