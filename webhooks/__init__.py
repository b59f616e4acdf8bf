"""The door: answers WorkOS's webhook deliveries and health checks. Imports worker and models."""

from webhooks.app import create_app

__all__ = ["create_app"]
