"""Sends every change to the product's hooks."""
