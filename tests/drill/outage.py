"""`python -m tests.drill.outage`: the events API is down and webhooks are lost, while a host asks with a bound.

Exit code 0 only if, asked in every way on both databases, no answer was older than its bound, answers turned stale
within the bound and not earlier, and were right again on their own.
"""

import json
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError

from models.access import Stale, access_of
from models.database import open_engine, read_transaction, session
from models.tables import Tail
from tests.support.processes import eventually
from tests.support.stack.machine import JSON, call, short_folder
from tests.support.stack.processes import Interrupted, Interruptions, StackError
from tests.support.stack.stack import Database, Stack
from tests.support.tail import DOCUMENTED_SQL
from worker.kinds import SUBSCRIBED

BOUND = 25.0
"""The smallest bound, in seconds, that the default settings can meet."""
INACCURACY = 2.0
"""WorkOS's `Date` has whole seconds, so the mirror takes its age for up to this many seconds more than it is."""
RECOVERY_SECONDS = 15.0
"""After the outage, answers are right again within this time: an interval of the tail, a read, and a drain."""
CALM_SECONDS = 10.0
"""For how long to ask before the outage, and after the recovery."""
FILL_SECONDS = 120.0
POLL_SECONDS = 1.0
DATABASES: tuple[Database, ...] = ("sqlite", "postgres")
BEFORE, AFTER, STALE = "member", "no access", "stale"


class Answer(NamedTuple):
    """`BEFORE`, `AFTER` or `STALE`, with the age of `complete_to` when it was asked for, and when it was answered."""

    asked_at: float
    answered_at: float
    said: str
    age_when_asked: float
    age_when_answered: float


class Outage(NamedTuple):
    """When the outage began, when it ended, and when access ended at WorkOS meanwhile; in seconds of `time.time`."""

    began_at: float
    changed_at: float
    ended_at: float


class Way:
    """A way to ask: `ask` returns a role, None or `STALE`, and `complete_to`."""

    def __init__(self, database: str, name: str, ask: Callable[[], tuple[str | None, datetime | None]]) -> None:
        self.database = database
        self.name = name
        self._ask = ask
        self.answers: list[Answer] = []

    def poll(self) -> str:
        """Ask once and note the answer."""
        asked_at = time.time()
        said, complete_to = self._ask()
        answered_at = time.time()
        at = complete_to.timestamp() if complete_to else float("-inf")
        self.answers.append(Answer(asked_at, answered_at, said or AFTER, asked_at - at, answered_at - at))
        return self.answers[-1].said


class Installation:
    """A stack of real processes, with one member of one workspace."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._operate("endpoints", url=stack.webhook_url, secret=stack.secret, events=SUBSCRIBED)
        self._user = self._operate("operations", operation="create_user", email="ann@acme.example")["id"]
        self._organization = self._operate("operations", operation="create_organization", name="Acme")["id"]
        ids = {"organization_id": self._organization, "user_id": self._user}
        self._membership = self._operate("operations", operation="create_membership", **ids)["id"]

    def ways(self, engine: Engine) -> Iterator[Way]:
        """Yield every way to ask about the member."""
        yield Way(self._stack.database, "Python", partial(self._ask_python, engine))
        yield Way(self._stack.database, "SQL", partial(self._ask_sql, engine))
        if self._stack.database == "postgres":
            yield Way(self._stack.database, "SQL function", partial(self._ask_function, engine))
        yield Way(self._stack.database, "HTTP", self._ask_http)

    def begin_outage(self) -> None:
        """Let the events API fail, and lose all webhooks from now on."""
        call("PUT", f"{self._stack.sandbox_url}/sandbox/knobs", {"loss": 1.0})
        self._operate("faults", kind="fail", path="/events", status=503, times=None)

    def end_access(self) -> None:
        """Deactivate the membership at WorkOS."""
        self._operate("operations", operation="deactivate_membership", membership_id=self._membership)

    def end_outage(self) -> None:
        """Let the events API answer. Webhooks are still lost."""
        call("DELETE", f"{self._stack.sandbox_url}/sandbox/faults")

    def _operate(self, control: str, **body: object) -> JSON:
        return call("POST", f"{self._stack.sandbox_url}/sandbox/{control}", body)

    def _ask_python(self, engine: Engine) -> tuple[str | None, datetime | None]:
        with session(engine) as opened:
            try:
                return access_of(opened, self._user, self._organization, max_staleness=BOUND)
            except Stale as stale:
                return STALE, stale.complete_to

    def _ask_sql(self, engine: Engine) -> tuple[str | None, datetime | None]:
        asked = {"user_id": self._user, "organization_id": self._organization, "max_staleness": BOUND}
        with read_transaction(engine) as tx:
            row = tx.execute(text(DOCUMENTED_SQL), asked).one_or_none()
            return STALE if row is None else row.role, _complete_to(engine)

    def _ask_function(self, engine: Engine) -> tuple[str | None, datetime | None]:
        asked = {"user": self._user, "organization": self._organization, "bound": BOUND}
        complete_to = _complete_to(engine)
        try:
            with read_transaction(engine) as tx:
                return tx.execute(text("SELECT role_of(:user, :organization, :bound)"), asked).scalar_one(), complete_to
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "WS001":
                raise
            return STALE, complete_to

    def _ask_http(self) -> tuple[str | None, datetime | None]:
        query = urlencode({"user_id": self._user, "organization_id": self._organization, "max_staleness": BOUND})
        headers = {"Authorization": f"Bearer {self._stack.token}"}
        request = urllib.request.Request(f"{self._stack.web_url}/api/v1/access?{query}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                found = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                    raise StackError(f"/api/v1/access answered {error.code}") from error
                found = json.load(error) | {"role": STALE}
        return found["role"], found["complete_to"] and datetime.fromisoformat(found["complete_to"])


def _complete_to(engine: Engine) -> datetime | None:
    with read_transaction(engine) as tx:
        return tx.execute(select(Tail.complete_to)).scalar_one()


def judge(answers: Iterable[Answer], outage: Outage) -> list[str]:
    """Return what is wrong with the answers that one way gave, oldest first."""
    wrong = []
    for answer in answers:
        at = answer.answered_at
        if answer.said != STALE and answer.age_when_asked > BOUND:
            wrong.append("an answer was older than its bound")
        if answer.said == STALE and answer.age_when_answered <= BOUND - INACCURACY:
            wrong.append("an answer was stale before its bound")
        if answer.said == BEFORE and answer.asked_at > outage.changed_at + BOUND:
            wrong.append("an outdated yes")
        if answer.said != BEFORE and at < outage.began_at:
            wrong.append(f"before the outage: {answer.said}")
        if answer.said != STALE and outage.began_at + BOUND < answer.asked_at and at < outage.ended_at:
            wrong.append(f"not stale during the outage: {answer.said}")
        if answer.said != AFTER and answer.asked_at > outage.ended_at + RECOVERY_SECONDS:
            wrong.append(f"not right after the outage: {answer.said}")
    return list(dict.fromkeys(wrong))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", type=click.FloatRange(2 * BOUND), default=600.0, show_default=True, help="Of the outage.")
def command(seconds: float) -> None:
    """Ask once a second before, during and after an outage of the events API in which webhooks are lost."""
    interruptions = Interruptions()
    interruptions.install()
    folder, code = short_folder(), 1
    with ExitStack() as at_end:
        at_end.callback(interruptions.cleaning_up)
        try:
            code = _drill(at_end, folder, seconds)
        except (StackError, AssertionError) as error:
            click.echo(f"outage: {error}", err=True)
        except Interrupted as interrupted:
            code = 128 + interrupted.number
    if code:
        click.echo(f"outage: the logs are in {folder}", err=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(code)


def _drill(at_end: ExitStack, folder: Path, seconds: float) -> int:
    installations: list[Installation] = []
    ways: list[Way] = []
    for database in DATABASES:
        stack = at_end.enter_context(Stack(folder / database, database=database, settings={"WORKER_PROCESSES": "1"}))
        installations.append(Installation(stack.start()))
        engine = open_engine(stack.database_url)
        at_end.callback(engine.dispose)
        ways += installations[-1].ways(engine)
    eventually(lambda: {way.poll() for way in ways} == {BEFORE}, FILL_SECONDS)
    for way in ways:
        way.answers.clear()
    _poll(ways, CALM_SECONDS)
    click.echo(f"for {seconds:g} seconds, the events API fails and webhooks are lost; a membership ends at WorkOS")
    began_at = time.time()
    for installation in installations:
        installation.begin_outage()
        installation.end_access()
    changed_at = time.time()
    _poll(ways, seconds)
    ended_at = time.time()
    for installation in installations:
        installation.end_outage()
    click.echo("the events API answers; webhooks are still lost")
    _poll(ways, RECOVERY_SECONDS + CALM_SECONDS)
    outage = Outage(began_at, changed_at, ended_at)
    _show(ways, outage)
    wrong = {f"{way.database}, {way.name}": judge(way.answers, outage) for way in ways}
    for name, what in wrong.items():
        click.echo(f"{name}: {'; '.join(what) or 'right'}")
    return int(any(wrong.values()))


def _poll(ways: Iterable[Way], seconds: float) -> None:
    """Ask in each way once a second, for some seconds."""
    due = time.monotonic()
    ends = due + seconds
    while due < ends:
        time.sleep(max(0.0, due - time.monotonic()))
        for way in ways:
            way.poll()
        due += POLL_SECONDS


def _show(ways: Iterable[Way], outage: Outage) -> None:
    columns = ("answers", "stale after (s)", "right again after (s)", "oldest answer (s)")
    table = Table("database", "asked by", *columns, title=f"Bound: {BOUND:g} seconds", title_justify="left")
    for way in ways:
        stale = [answer.answered_at for answer in way.answers if answer.said == STALE]
        right = [answer.answered_at for answer in way.answers if answer.said == AFTER]
        oldest = max(answer.age_when_asked for answer in way.answers if answer.said != STALE)
        figures = (stale[0] - outage.began_at if stale else None, right[0] - outage.ended_at if right else None, oldest)
        shown = ("never" if figure is None else f"{figure:.1f}" for figure in figures)
        table.add_row(way.database, way.name, f"{len(way.answers):,}", *shown)
    Console().print(table)


if __name__ == "__main__":
    command()
