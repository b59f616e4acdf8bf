"""Resync: compares the mirror with WorkOS and repairs it. `resync` runs the phases; the other modules do their work.

`listings` fetches pages. `apply_page` adds what is missing in the mirror. `deletions` finds what is missing in WorkOS.
`worker.repair.reads` decides the rest by reading single objects. `drift` records every difference.
"""
