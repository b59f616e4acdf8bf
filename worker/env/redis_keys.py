"""The names of our keys in Redis, which begin with ENVIRONMENT_NAME, so that several environments can share one Redis.

RQ's keys begin with it too. RQ reads its prefix from a variable when it is imported, so the package `worker` calls
`separate` before it imports anything else.
"""

import os
import re
from contextlib import suppress

from worker.env import sources

ENVIRONMENT_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
VARIABLE = "ENVIRONMENT_NAME"
RQ_VARIABLE = "RQ_KEY_PREFIX"


def separate() -> None:
    """Make RQ's keys begin with ENVIRONMENT_NAME. Ignores an invalid name, which `worker.settings` refuses later."""
    if name := _name():
        os.environ[VARIABLE] = name  # processes that are started later may have another working directory
        os.environ[RQ_VARIABLE] = f"{name}:rq"


def redis_key(name: str) -> str:
    """Return a key, such as `staging:workos-sync:counts`, or `workos-sync:counts` without ENVIRONMENT_NAME."""
    environment = _valid(sources.environment())
    return f"{environment}:workos-sync:{name}" if environment else f"workos-sync:{name}"


def _name() -> str | None:
    """Return ENVIRONMENT_NAME of the environment, else of `.env`, if it is valid."""
    environment = sources.environment()
    if (given := environment.get(VARIABLE.lower())) and given.text:
        return _valid(environment)
    with suppress(ValueError):  # `worker.settings` reports it
        return _valid(sources.env_file())
    return None


def _valid(source: dict[str, sources.Given]) -> str | None:
    """Return ENVIRONMENT_NAME of a source, if it is valid."""
    given = source.get(VARIABLE.lower())
    return given.text if given and ENVIRONMENT_NAME.fullmatch(given.text) else None
