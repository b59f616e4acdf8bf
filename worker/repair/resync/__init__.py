"""Resync: compares the mirror with WorkOS and repairs it. `resync` runs the phases; the other modules do their work.

`listings` fetches pages. `apply_page` adds what the mirror lacks. `deletions` finds what WorkOS no longer lists.
`worker.repair.reads` decides the rest by reading single objects. `drift` records every difference.
"""
