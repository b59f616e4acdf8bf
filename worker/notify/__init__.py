"""Notifies people and programs of the conditions that begin, continue and end (`NOTIFY`)."""
