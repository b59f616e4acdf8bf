"""Operators for functions that record who acts."""

from models.tables import Via
from worker.audit import Actor


def by(who: str, reason: str | None = None) -> Actor:
    """An operator at the command line."""
    return Actor(who, Via.CLI, reason)
