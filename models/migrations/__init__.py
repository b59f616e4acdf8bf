"""Alembic revisions and their environment."""
