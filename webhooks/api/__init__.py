"""The read-only JSON API under /api/v1. Requires a bearer token from API_TOKENS."""
