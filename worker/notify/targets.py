"""Where messages are sent: services through Apprise, and signed HTTP posts."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from importlib.util import find_spec

import structlog

from models.types import JsonObject
from worker.errors import ConfigurationError, HookError, NotifyError
from worker.hooks.targets import WebTarget
from worker.notify.message import Message
from worker.settings import Settings
from worker.settings.values import is_web

log = structlog.get_logger()

SEND_SECONDS = 20.0
"""Time limit for a message."""
CHILD = (sys.executable, "-P", "-m", "worker.notify.apprise_child")

Target = Callable[[Message], None]
"""Sends a message; raises `NotifyError` if it is not accepted within `SEND_SECONDS`."""


def targets(settings: Settings) -> dict[str, Target]:
    """Return the targets in the settings, by name. Imports and connects nothing yet."""
    secret = settings.notify_secret.get_secret_value() if settings.notify_secret else ""
    return {
        name: partial(_post, url, secret) if is_web(url) else partial(_send_through_apprise, url)
        for name, url in settings.notify_targets.items()
    }


def require_usable(settings: Settings) -> None:
    """Raise `ConfigurationError` if `NOTIFY` names services that cannot be used. Sends nothing.

    Only Apprise knows which URLs are valid. Commands that send no message need not wait for it.
    """
    try:
        problems = list(problems_of(settings))
    except NotifyError as error:  # the URLs were not checked, which must not prevent a start
        log.warning("notify_not_checked", error=str(error))
        return
    if problems:
        raise ConfigurationError(f"NOTIFY: {'; '.join(problems)}")


def problems_of(settings: Settings) -> Iterator[str]:
    """Yield a problem, with its remedy, for each target that cannot be used.

    Raises:
        NotifyError: Apprise, which knows, did not answer within `SEND_SECONDS`.
    """
    urls = {name: url for name, url in settings.notify_targets.items() if not is_web(url)}
    if urls and find_spec("apprise") is None:
        yield f"{', '.join(urls)}: Apprise is not installed; install the extra, workos-sync[notify]"
        return
    problems = _apprise(list(urls.values()), None) if urls else []
    for name, problem in zip(urls, problems, strict=True):
        if problem:
            yield f"the target {name} cannot be used: {problem}; compare it with https://appriseit.com/services"


def _post(url: str, secret: str, message: Message) -> None:
    try:
        with closing(WebTarget(url, secret, SEND_SECONDS)) as target:
            target.send(message.id, message.body)
    except HookError as error:
        raise NotifyError(str(error)) from error


def _send_through_apprise(url: str, message: Message) -> None:
    [problem] = _apprise([url], {"title": message.title, "text": message.text, "level": message.level})
    if problem:
        raise NotifyError(problem)


def _apprise(urls: list[str], message: JsonObject | None) -> list[str | None]:
    """Run Apprise in a process that is killed at the time limit; return a problem, or None, for each URL.

    Raises:
        NotifyError: the process did not answer in time, or could not be started.
    """
    try:
        ran = subprocess.run(  # noqa: S603 - our own program; URLs are on its standard input
            CHILD,
            input=json.dumps({"urls": urls, "message": message}),
            capture_output=True,
            text=True,
            timeout=SEND_SECONDS,
            check=True,
            start_new_session=True,  # so that Ctrl-C does not interrupt a message
        )
        problems: list[str | None] = json.loads(ran.stdout)["problems"]
    except subprocess.TimeoutExpired as error:
        raise NotifyError(f"no answer within {SEND_SECONDS:g} s") from error
    except (subprocess.CalledProcessError, ValueError, OSError) as error:
        raise NotifyError(f"Apprise failed ({type(error).__name__})") from error
    return problems
