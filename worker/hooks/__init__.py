"""Telling the host of every change."""
