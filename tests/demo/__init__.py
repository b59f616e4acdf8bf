"""`workos-sync demo`: the whole thing as real processes against a sandbox WorkOS, and a verdict at the end."""

from .cli import command

__all__ = ["command"]
