"""The JSON API under /api/v1. Requires a bearer token of API_TOKENS; API_REFRESH_NAMES lets some do more than read."""
