"""The JSON API under /api/v1, for the product and its tools. Reads only; a bearer token of API_TOKENS."""

from webhooks.api.routes import blueprint

__all__ = ["blueprint"]
