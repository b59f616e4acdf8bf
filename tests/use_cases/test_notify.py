"""Targets of NOTIFY are notified once when a condition begins, again at intervals, and when it has ended."""

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import Engine, insert, text, update
from sqlalchemy.exc import DBAPIError

from models.tables import Notice, NotifyTarget, Tail
from models.types import db_now_plus
from tests.support import fake_workers, rows
from tests.support.auto_join import mark_as_filled
from tests.support.cli import report, run
from tests.support.conditions import execute
from tests.support.hooks import OK, SECRET, Web, dripping, raw_host
from tests.support.notify import REMIND, Service, active, json_service, later, lose_leases
from tests.support.processes import eventually
from tests.support.tail import fresh
from worker.bootstrap import Services
from worker.errors import ConfigurationError, NotifyError
from worker.notify import targets
from worker.notify.message import Message, Sender
from worker.notify.notifier import Notifier
from worker.notify.plan import Active, Key, Recorded, plan
from worker.notify.targets import Target
from worker.processes.clock import heartbeat
from worker.reports.health import check_health
from worker.reports.notices import notices
from worker.reports.verdict import judge
from worker.settings import Settings

WORDS = ("begun", "continuing", "ended")
PAGES = "https://sync.example.com"
OTHER = f"{SECRET[:-4]}c2xv"


@pytest.fixture
def service() -> Iterator[Service]:
    with json_service() as running:
        yield running


def settings(**given: object) -> Settings:
    return Settings(_env_file=None, notify_secret=SECRET, public_url=PAGES, **given)


@pytest.fixture
def notifier(engine: Engine, web_host: Web) -> Notifier:
    """A notifier of one target, a host that verifies signatures."""
    return notifier_of(engine, targets.targets(settings(notify=web_host.url)))


def notifier_of(engine: Engine, found: Mapping[str, Target]) -> Notifier:
    def unexpected(error: BaseException) -> None:
        raise AssertionError from error

    return Notifier(engine, found, REMIND, Sender("staging", PAGES), unexpected)


def sent(host: Web) -> list[dict[str, list[str]]]:
    """The conditions in each message, by what is said about them."""
    return [
        {
            word: [each["name"] for each in found]
            for word, found in message["data"].items()
            if found and word != "environment"
        }
        for message in host.took
    ]


def test_a_condition_is_reported_once_with_reminders_and_end(engine: Engine, notifier: Notifier, web_host: Web) -> None:
    both = [active(), active("drift", "warning")]
    notifier.notify(both)
    assert web_host.took == [], "it may be a restart"
    later(engine, 61)
    for _ in range(3):
        notifier.notify(both)
    notifier_of(engine, notifier.targets).notify(both)  # of another host, or after a restart
    assert sent(web_host) == [{"begun": ["failed_events", "drift"]}], "in one message, once, the worst first"
    first = web_host.took[0]
    assert (first["type"], first["data"]["begun"][0]) == (
        "conditions.changed",
        {
            "name": "failed_events",
            "subject": "",
            "severity": "problem",
            "since": rows(engine, Notice)[1]["since"].isoformat(),
            "sentence": "failed_events holds",
            "remedy": "do this",
            "url": f"{PAGES}/ops/",
        },
    )
    later(engine, 24 * 3600)
    notifier.notify(both)
    notifier.notify([])
    assert sent(web_host)[1:] == [{"continuing": ["failed_events", "drift"]}]
    later(engine, 61)
    for _ in range(2):
        notifier.notify([active("drift", "warning")])
    assert sent(web_host)[2:] == [{"ended": ["failed_events"]}]
    assert len({message["id"] for message in web_host.took}) == 3
    assert [row["name"] for row in rows(engine, Notice)] == ["drift"]


def test_two_hosts_send_one_message(engine: Engine, notifier: Notifier, web_host: Web) -> None:
    notifier.notify([active()])
    later(engine, 61)
    web_host.open.clear()  # the first is still sending when the second begins
    with ThreadPoolExecutor() as pool:
        sending = [pool.submit(notifier.notify, [active()]) for _ in range(2)]
        eventually(lambda: any(each.done() for each in sending), 10)  # it found the lease taken
        web_host.open.set()
        for each in sending:
            each.result()
    assert sent(web_host) == [{"begun": ["failed_events"]}]


def test_a_message_that_may_have_arrived_is_repeated_with_its_id(engine: Engine, web_host: Web) -> None:
    post = targets.targets(settings(notify=web_host.url)).popitem()[1]

    def post_and_freeze(message: Message) -> None:
        post(message)
        lose_leases(engine)

    frozen, other = (notifier_of(engine, {"host": target}) for target in (post_and_freeze, post))
    frozen.notify([active()])
    later(engine, 61)
    frozen.notify([active()])
    other.notify([active()])
    other.notify([active()])
    assert sent(web_host) == [{"begun": ["failed_events"]}] * 2
    assert len({message["id"] for message in web_host.took}) == 1
    both = [active(), active("drift")]
    frozen.notify(both)
    later(engine, 61)
    frozen.notify(both)
    for _ in range(2):  # it ends before the message could be repeated
        other.notify([active()])
        later(engine, 61)
    assert sent(web_host)[2:] == [{"begun": ["drift"]}, {"ended": ["drift"]}]


def test_a_failing_target_gets_one_message_when_it_works_again(
    engine: Engine, notifier: Notifier, web_host: Web
) -> None:
    [name] = notifier.targets
    web_host.answers.extend([500, 404, 302])
    notifier.notify([active()])
    later(engine, 61)
    for attempt, wait in enumerate((15, 30, 60), start=1):
        notifier.notify([active()])
        notifier.notify([active()])
        assert web_host.tried == attempt, "the next attempt is not due yet"
        later(engine, wait - 5)
        notifier.notify([active()])
        assert web_host.tried == attempt, "the pause doubles"
        later(engine, 6)
    [row] = rows(engine, NotifyTarget)
    assert (row["attempts"], row["error"]) == (3, "answered 302")
    own = active("notify_failed", "warning", name)
    notifier.notify([active(), active("drift", "warning"), own])
    later(engine, 61)
    notifier.notify([active("drift", "warning"), own])
    assert sent(web_host) == [{"begun": ["failed_events"]}, {"begun": ["drift"]}], "never about itself"
    assert rows(engine, NotifyTarget)[0]["attempts"] == 0


def test_a_target_that_works_again_is_notified_of_what_ended(engine: Engine, notifier: Notifier, web_host: Web) -> None:
    web_host.answers.append(503)
    notifier.notify([active()])
    later(engine, 61)
    notifier.notify([active()])
    later(engine, 61)
    notifier.notify([])  # ended meanwhile
    assert (sent(web_host), rows(engine, NotifyTarget)[0]["attempts"]) == ([{}], 0)
    later(engine, 61)
    notifier.notify([])
    assert sent(web_host)[1:] == [{"ended": ["failed_events"]}]


def test_a_slow_target_is_cut_off_and_delays_no_other(
    engine: Engine, web_host: Web, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "SEND_SECONDS", 2.0)
    with raw_host(dripping(OK)) as slow:
        apprise = slow.replace("http://", "json://")
        found = targets.targets(settings(notify=f"{slow},{web_host.url},{apprise}"))
        notifier = notifier_of(engine, found)
        notifier.notify([active()])
        later(engine, 61)
        begun = time.monotonic()
        notifier.notify([active()])
        assert time.monotonic() - begun < 8
    assert sent(web_host) == [{"begun": ["failed_events"]}]
    failed = {row["name"]: row["error"] for row in rows(engine, NotifyTarget) if row["attempts"]}
    assert failed == dict.fromkeys([slow.split("/")[2], "json"], "no answer within 2 s")


def test_an_unexpected_error_is_reported_and_counts_as_a_refusal(one_engine: Engine) -> None:
    def broken(_message: Message) -> None:
        raise KeyError("secret-path")

    reported: list[BaseException] = []
    notifier = replace(notifier_of(one_engine, {"broken": broken}), report=reported.append)
    notifier.notify([active()])
    later(one_engine, 61)
    notifier.notify([active()])
    [row] = rows(one_engine, NotifyTarget)
    assert row["attempts"] == 1 and row["error"].startswith("KeyError at ") and "secret-path" not in row["error"]
    assert [type(error) for error in reported] == [KeyError]


def test_an_error_of_the_database_is_raised(one_engine: Engine) -> None:
    execute(one_engine, text("DROP TABLE notices"))
    with pytest.raises(DBAPIError):
        notifier_of(one_engine, {"never": lambda _message: None}).notify([active()])


# When something is reported

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def known(notified_at: timedelta | None = None, gone: timedelta | None = None, severity: str = "problem") -> Recorded:
    """A condition that began two days ago, and was reported and gone that long ago."""
    times = (each if each is None else NOW - each for each in (notified_at, gone))
    return Recorded("failed_events", "", severity, NOW - timedelta(days=2), notified_at is not None, *times)


MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
NONE: list[Active] = []


@pytest.mark.parametrize(
    ("before", "holding", "said"),
    [
        (None, [active()], {}),
        (known(), [active()], {"begun"}),
        (known(), NONE, {}),
        (known(), [active(explained=True)], {}),
        (known(MINUTE), [active()], {}),
        (known(MINUTE), NONE, {}),
        (known(DAY), [active()], {"continuing"}),
        (known(DAY), [active(explained=True)], {}),
        (known(DAY, DAY), [active(explained=True)], {}),
        (known(DAY, MINUTE), NONE, {"ended"}),
        (known(DAY, MINUTE / 2), NONE, {}),
        (known(MINUTE, DAY), [active()], {}),
        (known(MINUTE, severity="warning"), [active()], {"begun"}),
        (known(MINUTE), [active(severity="warning")], {}),
        (known(MINUTE), [active(severity="warning"), active()], {}),
    ],
)
def test_when_something_is_reported(before: Recorded | None, holding: list[Active], said: set[str]) -> None:
    recorded: dict[Key, Recorded] = {before.key: before} if before else {}
    found = plan(recorded, holding, NOW, REMIND)
    assert {word for word in WORDS if getattr(found, word)} == set(said)
    again = plan(found.when_sent(), holding, NOW, REMIND)
    assert not again.has_news and not (again.changed and found.has_news), "reported once"


@pytest.mark.parametrize(("gone", "interrupted"), [(MINUTE / 2, False), (MINUTE, True), (DAY, True)])
def test_a_condition_that_returns_after_a_minute_counts_from_its_return(gone: timedelta, interrupted: bool) -> None:
    """Its end was not reported, because the target did not answer."""
    before = {active().key: known(DAY, gone)}
    found = plan(before, [active()], NOW, REMIND)
    since = NOW if interrupted else NOW - 2 * DAY
    assert found.recorded[active().key].since == since and not found.begun
    assert bool(found.continuing) is not interrupted, "a reminder would be about a moment"
    afterwards = plan(found.recorded, [active()], NOW + MINUTE, REMIND)
    assert afterwards.continuing and not afterwards.begun and afterwards.recorded[active().key].since == since


def test_a_condition_that_its_cause_hides_has_not_ended() -> None:
    before = {("overdue", ""): known(MINUTE)._replace(name="overdue")}
    hidden = plan(before, [active("no_worker"), active("overdue", explained=True)], NOW, REMIND)
    assert hidden.recorded["overdue", ""].gone_since is None and not hidden.has_news


# What is reported


def test_one_cause_is_one_notice(make_services: Callable[..., Services], web_host: Web) -> None:
    services = make_services(hooks=f"crm={web_host.url}", hook_secrets=f"crm:{SECRET}")
    found = notices(check_health(services.engine, services.report_redis, services.settings))
    by_name = {each.name: each for each in found if not each.explained}
    assert "therefore" in by_name["no_worker"].sentence and "not filled" in by_name["no_worker"].sentence
    assert "backfilling" not in by_name and "backfilling" in {each.name for each in found}


def test_a_failing_target_is_a_condition_until_it_works_or_is_removed(
    make_services: Callable[..., Services], redis_url: str
) -> None:
    services = make_services(notify="slack://secret/of/ours", workos_api_key="sk_test", workos_client_id="client_1")
    engine = services.engine
    failing = {"name": "slack", "attempts": 3, "error": "answered 404"}
    execute(engine, insert(NotifyTarget).values(failing))
    mark_as_filled(engine)
    fresh(engine)
    heartbeat(engine)
    with fake_workers.registered(redis_url):
        [found] = judge(engine, services.report_redis, services.settings).conditions
        assert (found.name, found.severity) == ("notify_failed", "warning")
        assert found.sentence == "notifications to slack failed 3 times: answered 404"
        [notice] = notices(check_health(engine, services.report_redis, services.settings))
        assert (notice.subject, notice.sentence) == ("slack", "notifications to slack failed 3 times")
        removed = services.settings.model_copy(update={"notify": ()})
        assert judge(engine, services.report_redis, removed).conditions == []
        execute(engine, update(NotifyTarget).values(attempts=2))
        assert judge(engine, services.report_redis, services.settings).conditions == []


def test_no_error_message_is_reported(make_services: Callable[..., Services]) -> None:
    services = make_services(workos_api_key="sk_test", workos_client_id="client_1")
    mark_as_filled(services.engine)
    failing = update(Tail).values(complete_at=db_now_plus(-999), error="ann@acme.example is unknown")
    execute(services.engine, failing)
    found = notices(check_health(services.engine, services.report_redis, services.settings))
    assert "bound_missed" in {each.name for each in found} and "ann@" not in repr(found)


# notify test, and what is wrong with NOTIFY


@pytest.fixture
def environment(
    set_environment: Callable[..., None], make_database: Callable[[str], str], restored_logging: None
) -> Callable[..., None]:
    return partial(set_environment, DATABASE_URL=make_database("sqlite"), NOTIFY_SECRET=SECRET, PUBLIC_URL=PAGES)


@pytest.mark.long
def test_a_test_message_goes_to_each_target(environment: Callable[..., None], web_host: Web, service: Service) -> None:
    both = f"{service.url},{web_host.url}"
    environment(NOTIFY=both)
    name = web_host.url.split("/")[2]
    sent = [{"target": target, "outcome": "sent", "error": None} for target in ("json", name)]
    assert report("notify", "test") == sent
    assert [message["type"] for message in web_host.took] == ["notify.test"]
    [message] = service.took
    assert message["title"] == "workos-sync (sync.example.com): test" and "This is a test" in message["message"]

    service.answers.append(403)
    web_host.answers.append(500)
    environment(NOTIFY=f"{both},json://127.0.0.1:1/secret-path")
    shown = run("notify", "test", exit_code=1).output
    outcomes = [line.split("\t") for line in shown.splitlines()[1:]]
    assert outcomes == [
        ["json", "failed", "answered 403"],
        [name, "failed", "answered 500"],
        ["json 2", "failed", "no answer"],
    ]


def test_apprise_gets_the_text_for_people(service: Service, one_engine: Engine) -> None:
    found = targets.targets(settings(notify=service.url))
    notifier = notifier_of(one_engine, found)
    notifier.notify([active("drift", "warning")])
    later(one_engine, 61)
    notifier.notify([active("drift", "warning")])
    [message] = service.took
    assert (message["title"], message["type"]) == ("workos-sync (staging, sync.example.com): 1 new warning", "warning")
    assert message["message"] == f"New warning: drift holds: do this\n{PAGES}/ops/"


@pytest.mark.parametrize("command", ["clock", "worker"])
def test_urls_that_apprise_does_not_accept(environment: Callable[..., None], command: str) -> None:
    environment(NOTIFY="nosuch://secret-path,slack://secret-path,json://127.0.0.1:1")
    lines = run(command, exit_code=2).stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("workos-sync: NOTIFY: ")
    assert re.findall(r"the target (\w+) cannot be used: [^;]+; compare it with https://", lines[0]) == [
        "nosuch",
        "slack",
    ]
    assert "secret-path" not in lines[0]


def test_a_test_needs_a_target(environment: Callable[..., None]) -> None:
    environment()
    assert "NOTIFY is not set" in run("notify", "test", exit_code=2).stderr


def test_apprise_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda _name: None)
    with pytest.raises(
        ConfigurationError, match=r"slack: Apprise is not installed; install the extra, workos-sync\[notify\]"
    ):
        targets.require_usable(settings(notify="slack://a/b/c"))
    targets.require_usable(settings(notify="https://host.example/x"))


def test_an_error_of_apprise_is_a_failure_of_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "CHILD", (sys.executable, "-c", "raise ValueError('secret-path')"))
    [send] = targets.targets(settings(notify="slack://secret-path/b/c")).values()
    with pytest.raises(NotifyError, match=r"^Apprise failed \(CalledProcessError\)$"):
        send(Message("id", "info", "title", "text", {}))
