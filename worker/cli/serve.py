"""`workos-sync web`, `worker`, `clock`, `up` and `demo`."""

import importlib.util
from collections.abc import Callable

import click

from worker.cli.shared import logging_settings
from worker.errors import ConfigurationError
from worker.lazy import lazy_imports

with lazy_imports():
    from worker.cli import programs
    from worker.processes import embedded

port_option = click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on. Overrides PORT.")
processes_option = click.option(
    "--processes", type=click.IntRange(1), help="Number of processes that apply events. Overrides WORKER_PROCESSES."
)


@click.command()
@port_option
def web(port: int | None) -> None:
    """Receive webhooks; serve pages, API, metrics and health checks.

    A process that dies is restarted.
    """
    settings = logging_settings("workos_webhook_secrets", brief=False, port=port)
    programs.supervise_parts("web", settings, programs.web_part)


@click.command()
@processes_option
def worker(processes: int | None) -> None:
    """Apply events, read the events API, call hooks, run long jobs.

    With AUTO_JOIN=provision, also creates memberships for people who join by domain; with REVOKE_SESSIONS=on, ends
    sessions of people who lost access. Long jobs are resyncs, catch-ups, replays and retention. A process that dies is
    restarted.
    """
    settings = logging_settings(brief=False, worker_processes=processes)
    programs.supervise_parts("worker", settings, programs.worker_part, programs.tail_part, programs.notify_part)


@click.command()
@port_option
@processes_option
def up(port: int | None, processes: int | None) -> None:
    """Run web, worker and clock under one supervisor.

    For a small installation. A process that dies is restarted.
    """
    settings = logging_settings("workos_webhook_secrets", brief=False, port=port, worker_processes=processes)
    if "worker_processes" not in settings.model_fields_set:  # a second one would take a tenth of the memory
        settings = settings.model_copy(update={"worker_processes": 1})
    parts = (programs.web_part, programs.worker_part, programs.clock_and_tail_part)
    programs.supervise_parts("up", settings, *parts, running=embedded.redis_server_for_up)


@click.command()
def clock() -> None:
    """Run the scheduler of resyncs, catch-ups and retention.

    Also wakes workers for events whose wake-up was lost.
    """
    programs.run_clock(logging_settings(brief=False))


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS]")
def demo(arguments: tuple[str, ...]) -> None:
    """Run a demo on this machine against a simulated WorkOS.

    Requires a clone of the repository, where `workos-sync demo --help` lists the options.
    """
    if importlib.util.find_spec("tests") is None or importlib.util.find_spec("tests.demo") is None:
        raise ConfigurationError("the demo is not part of the installed package; run make demo in a checkout")
    command: Callable[..., None] = importlib.import_module("tests.demo").command
    command(list(arguments), prog_name="workos-sync demo")
