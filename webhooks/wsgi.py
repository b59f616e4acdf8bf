"""The WSGI entry point: builds the application of one gunicorn process from the environment."""

from flask import Flask

from webhooks.app import create_app
from worker.bootstrap import build_services
from worker.logs import configure
from worker.private_files import keep_files_private
from worker.processes.embedded import redis_url
from worker.settings import load_settings


def application() -> Flask:
    """Return the application, without connecting to the database. While it is unavailable, requests get 503.

    Raises:
        ConfigurationError: a setting is invalid, or no webhook secret is set.
    """
    keep_files_private()
    settings = load_settings("workos_webhook_secrets")
    configure(settings.log_format)
    return create_app(build_services(settings, redis_url(settings), endpoint=True))
