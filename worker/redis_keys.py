"""The names of our keys in Redis, which begin with ENVIRONMENT_NAME, so that several environments can share one Redis.

RQ's keys begin with it too. RQ reads its prefix from a variable when it is imported, so the package `worker` calls
`separate` before it imports anything else.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

ENVIRONMENT_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
VARIABLE = "ENVIRONMENT_NAME"
RQ_VARIABLE = "RQ_KEY_PREFIX"
ENV_FILE = Path(".env")


def separate() -> None:
    """Let RQ's keys begin with ENVIRONMENT_NAME. An invalid name is left to `worker.settings`, which refuses it."""
    if name := _name():
        os.environ[VARIABLE] = name  # processes that are started later may have another working directory
        os.environ[RQ_VARIABLE] = f"{name}:rq"


def redis_key(name: str) -> str:
    """Return a key, such as `staging:workos-sync:counts`, or `workos-sync:counts` without ENVIRONMENT_NAME."""
    environment = _valid(os.environ.get(VARIABLE))
    return f"{environment}:workos-sync:{name}" if environment else f"workos-sync:{name}"


def _name() -> str | None:
    """Return ENVIRONMENT_NAME of the environment or of `.env`, if it is valid."""
    given = os.environ.get(VARIABLE, "").strip()
    if not given and ENV_FILE.is_file():
        from dotenv import dotenv_values  # noqa: PLC0415 - most commands have no `.env`

        with suppress(OSError, ValueError):  # `worker.settings` reports it
            given = (dotenv_values(ENV_FILE, encoding="utf-8-sig").get(VARIABLE) or "").strip()
    return _valid(given)


def _valid(name: str | None) -> str | None:
    return name if name and ENVIRONMENT_NAME.fullmatch(name) else None
