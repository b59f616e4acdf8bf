"""The mirror: how states get into it, what they mean for auto-join, and how long things are kept."""
