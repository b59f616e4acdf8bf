"""Notifies people and programs when conditions begin, continue and end (`NOTIFY`)."""
