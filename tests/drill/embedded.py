"""A small installation of its own, whose commands share the Valkey that one of them has started."""

import shutil
import time
from contextlib import suppress

from sqlalchemy import Engine

from models.database import open_engine
from tests.demo import play
from tests.drill.judge import lost
from tests.drill.status import LIMIT_SECONDS, POLL_SECONDS, Truth, Watch, ask_api
from tests.support import differences
from tests.support.processes import eventually, working_in
from tests.support.stack.machine import JSON, call, short_folder
from tests.support.stack.processes import StackError
from tests.support.stack.stack import EMBEDDED, Stack

SETTINGS = {
    "WEB_PROCESSES": "1",
    "WORKER_PROCESSES": "1",
    "SWEEP_SECONDS": "1",
    "REPAIR_SECONDS": "0.5",
    "CATCH_UP_SECONDS": "2",
    "CATCH_UP_LAG_SECONDS": "5",
    "WORKOS_RATE_SHARE": "1.0",
}
LIFE: JSON = {"events": 10**9, "rate": 5, "companies": 3}
KNOBS: JSON = {"retries": 8, "retry_base": 0.2, "retry_signs_again": True}
START_SECONDS = 120.0
LANES = ("drain", "repair")


def frozen_embedded_valkey(seconds: float, seed: int) -> list[str]:
    """Freeze the embedded Valkey of an installation while events flow, and return what went wrong."""
    folder = short_folder()
    try:
        with Stack(folder, embedded=True, seed=seed, settings=SETTINGS, forked=True) as stack:
            stack.start()
            engine = open_engine(stack.database_url)
            try:
                return [
                    f"with a frozen embedded Valkey: {problem}" for problem in _freeze(stack, engine, seconds, seed)
                ]
            finally:
                engine.dispose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _freeze(stack: Stack, engine: Engine, seconds: float, seed: int) -> list[str]:
    play.begin(stack, knobs=KNOBS, **LIFE | {"seed": seed})
    eventually(lambda: _is_trusted(stack), START_SECONDS)
    home = stack.folder / EMBEDDED / "valkey"
    [server] = working_in(home)
    name = "/api/v1/status beside a frozen embedded Valkey"
    watch = Watch(name, lambda: ask_api(stack), Truth(stack, engine, LANES), POLL_SECONDS)
    try:
        server.suspend()
        time.sleep(seconds)
        server.resume()
        if ended := _ended(stack):
            return ended
        call("POST", f"{stack.sandbox_url}/sandbox/stop")
        list(play.watch(stack, engine))
        watch.wait_until_right(LIMIT_SECONDS)
    finally:
        server.resume()
        watch.stop()
    moved = [] if working_in(home) == [server] else ["the commands have left it, or have ended it"]
    return moved + watch.record.wrong + _judge(stack, engine)


def _is_trusted(stack: Stack) -> bool:
    with suppress(StackError):
        return bool(ask_api(stack).trusted)
    return False


def _ended(stack: Stack) -> list[str]:
    return [
        f"{name} ended: {process.tail()}"
        for name, process in stack.processes.items()
        if process.popen.poll() is not None
    ]


def _judge(stack: Stack, engine: Engine) -> list[str]:
    acknowledged, any_event = lost(engine, call("GET", f"{stack.sandbox_url}/sandbox/records"))
    found = differences(engine, call("GET", f"{stack.sandbox_url}/sandbox/truth"))
    return [f"lost although acknowledged: {id}" for id in acknowledged] + [f"lost: {id}" for id in any_event] + found
