"""The mirror: applying states, what they mean for auto-join, the change feed, retention and erasure."""
