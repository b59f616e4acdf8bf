"""Small things a stack of processes needs from the machine: a folder, ports, an environment, HTTP."""

import json
import os
import random
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tests.support.stack.processes import StackError
from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
LONGEST_FOLDER = 80
"""Of a path of about 100 characters that the name of a Unix socket may have."""

OWN_PORTS = range(20_000, 32_768)
"""Below those that the kernel gives to outgoing connections."""
JSON = dict[str, Any]


def environment(compiled: Path) -> dict[str, str]:
    """Return our environment without anybody's settings of workos-sync, so that only a stack's own count.

    Where Python may not write beside the source, it compiles into `compiled`: once for all processes of a stack.
    """
    foreign = {name.upper() for name in Settings.model_fields} | {"GUNICORN_CMD_ARGS"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() not in foreign and not name.upper().startswith("WORKOS_")
    }
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    kept["PYTHONUNBUFFERED"] = "1"
    if sys.dont_write_bytecode:
        kept |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(compiled)}
    return kept


def short_folder() -> Path:
    """Make a temporary folder whose path leaves room for the name of a Unix socket."""
    made = Path(tempfile.mkdtemp(prefix="workos-sync-"))
    if len(str(made)) > LONGEST_FOLDER:
        made.rmdir()
        made = Path(tempfile.mkdtemp(prefix="workos-sync-", dir="/tmp"))
    return made


def call(method: str, url: str, body: JSON | None = None, seconds: float = 30.0) -> JSON:
    """Ask an HTTP server of the stack; raise `StackError` for anything but a good answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            found: JSON = json.loads(answer.read())
            return found
    except urllib.error.HTTPError as error:
        raise StackError(f"{method} {url} answered {error.code}: {error.read().decode(errors='replace')}") from error
    except (OSError, HTTPException) as error:  # the latter: it ended in the middle of its answer
        raise StackError(f"{method} {url} failed: {error}") from error


def answers(url: str) -> bool:
    """Whether an HTTP server gives a good answer now."""
    with suppress(StackError):
        call("GET", url, seconds=2)
        return True
    return False


def free_ports(number: int) -> list[int]:
    """Return `number` different free ports, none of which an outgoing connection can take in the meantime."""
    found: list[int] = []
    for port in random.SystemRandom().sample(OWN_PORTS, 200):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == number:
            return found
    raise StackError(f"no {number} free ports")
