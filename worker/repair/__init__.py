"""Repair: catch-up, resync, confirmed reads and replays, as runs under leases, and their schedule."""
