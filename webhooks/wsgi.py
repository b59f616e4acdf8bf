"""What gunicorn serves: the application of one process, built from the environment."""

from flask import Flask

from webhooks.app import create_app
from worker.logs import configure
from worker.processes.embedded import redis_url
from worker.settings import load_settings
from worker.wiring import require_migrated, wire


def application() -> Flask:
    """Return the application; raises `ConfigurationError` as `create_app` and `require_migrated`."""
    settings = load_settings("workos_webhook_secrets")
    configure(settings.log_format)
    wiring = wire(settings, redis_url(settings), door=True)
    require_migrated(wiring.engine)
    return create_app(wiring)
