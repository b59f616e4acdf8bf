"""`workos-sync demo`: runs all processes against a sandbox WorkOS, and compares the mirror with it at the end."""

from .cli import command

__all__ = ["command"]
