"""The HTTP side: the webhook endpoint, health checks, metrics, JSON API and operators' pages."""
