"""The inbox: what is accepted, and how it is drained."""
