"""The HTTP side: the webhook endpoint, health checks, metrics, JSON API and operators' pages."""

from webhooks.app import create_app

__all__ = ["create_app"]
