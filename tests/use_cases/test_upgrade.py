"""What an older release left is finished by this one, and its processes go on while they are being replaced."""

import json
from collections.abc import Callable, Iterable

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, delete, text, update

from models.database import open_engine, write, writing
from models.migrate import downgrade, upgrade
from models.revisions import outdated
from models.tables import Event, Kind, Listing, Mirror, Run, RunStatus, Seen, Task, User
from tests.integration.batches import count, let_time_pass, pending
from tests.integration.processes import Commands, eventually
from tests.integration.stories import company_life
from tests.sandbox import Sandbox, play
from tests.support import JSON, apply_all, differences, made, rows, statuses
from tests.use_cases.resyncs import deliver, go_on, settings_of
from worker.decision.handlers import SUBSCRIBED
from worker.directory.client import Directory
from worker.mirror import addresses
from worker.repair import replay, runs
from worker.repair.environment import bind
from worker.repair.resync import start
from worker.repair.work import Repair
from worker.settings import load_settings
from worker.signals.doorbell import Doorbell

NOW = {"sqlite": "strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now')", "postgresql": "now()"}
ACCEPT = {
    "0001": """
        INSERT INTO events (id, type, body, source) VALUES (:id, :type, :body, 'webhook')
        ON CONFLICT (id) DO UPDATE SET deliveries = events.deliveries + 1, last_delivered_at = {now}
        RETURNING events.deliveries
    """,
    "0006": """
        INSERT INTO events (id, type, source, body, webhook_at) VALUES (:id, :type, 'webhook', :body, {now})
        ON CONFLICT (id) DO UPDATE SET deliveries = events.deliveries + 1, last_delivered_at = {now},
            webhook_at = coalesce(events.webhook_at, {now})
        RETURNING events.deliveries
    """,
}
"""How the doors of older releases store an event, by the revision they know."""
WRITE_USER = "UPDATE users SET email = :email, revision = revision + 1, touched_at = {now} WHERE id = :id"
"""How the drains of the release before 0007 write one: they know of no `email_normalized`."""
BATCH = "INSERT INTO batches (id, event_ids, started_at) VALUES (:id, :event_ids, {started})"
TRIED = "UPDATE events SET attempts = 3, error = 'OperationalError: of an older release', due_at = {now} WHERE id = :id"


def addresses_of(engine: Engine) -> dict[str, tuple[str, str]]:
    return {row["id"]: (row["email_normalized"], row["email_domain"]) for row in rows(engine, User)}


def run(engine: Engine, statement: str, values: Iterable[JSON], **parts: str) -> None:
    """Run a statement of an older release."""
    with writing(engine) as tx:
        tx.execute(text(statement.format(now=NOW[engine.dialect.name], **parts)), list(values))


def accept_as(revision: str, engine: Engine, events: Iterable[JSON]) -> None:
    for event in events:
        run(engine, ACCEPT[revision], [{"id": event["id"], "type": event["event"], "body": json.dumps(event).encode()}])


@pytest.mark.parametrize("revision", ["0001", "0006"])
def test_what_an_older_release_accepted_is_applied_after_the_migration(engine: Engine, revision: str) -> None:
    story, truth = company_life(240)
    applied, waiting, late = story[:80], story[80:200], story[200:]
    deliver(engine, applied)
    downgrade(engine, revision)
    accept_as(revision, engine, waiting)
    half, started = ([event["id"] for event in waiting[place::4]] for place in (0, 1))
    run(engine, BATCH, [{"id": "a-half", "event_ids": json.dumps(half)}], started="NULL")
    run(engine, BATCH, [{"id": "of-a-dead-drain", "event_ids": json.dumps(started)}], started=NOW[engine.dialect.name])
    run(engine, TRIED, [{"id": event["id"]} for event in waiting[2::4]])
    let_time_pass(engine)
    assert outdated(engine)
    upgrade(engine)
    accept_as(revision, engine, [*late, *waiting[::10], *applied[::10]])  # by processes that are still to be replaced
    apply_all(engine)
    assert statuses(engine) == {"done": len(story)}
    assert count(engine, Event.deliveries == 2) == len([*waiting[::10], *applied[::10]])
    assert differences(engine, truth) == []


@pytest.mark.parametrize("email", ["Ann@Acme.example", "ann@gone.example"])
def test_a_user_whom_a_process_of_the_older_release_wrote_gets_the_addresses_that_are_compared(
    engine: Engine, email: str
) -> None:
    deliver(
        engine, [made("user.created", id="user_ann", email="ann@gone.example"), made("user.created", id="user_bob")]
    )
    before = addresses_of(engine)
    run(engine, WRITE_USER, [{"id": "user_ann", "email": email}])
    assert addresses.mend(engine) == (email != "ann@gone.example")
    assert addresses_of(engine) == before | {"user_ann": (email.lower(), email.lower().partition("@")[2])}
    assert addresses.mend(engine) == 0


@pytest.mark.long
def test_the_clock_looks_for_such_users_by_itself(
    make_database: Callable[[str], str], redis_url: str, commands: Commands
) -> None:
    commands.settings |= {"DATABASE_URL": (url := make_database("sqlite")), "REDIS_URL": redis_url}
    engine = open_engine(url)
    deliver(engine, [made("user.created", id="user_ann", email="ann@gone.example")])
    run(engine, WRITE_USER, [{"id": "user_ann", "email": "ann@acme.example"}])
    commands.start("clock")
    eventually(lambda: addresses_of(engine) == {"user_ann": ("ann@acme.example", "acme.example")}, 60)
    engine.dispose()


def test_runs_that_the_previous_release_left_open_are_finished(
    both_engines: Engine, sandbox: Sandbox, directory: Directory, redis: Redis, set_environment: Callable[..., None]
) -> None:
    set_environment(CATCH_UP_LAG_SECONDS="3", **settings_of(sandbox))
    settings, bell = load_settings(), Doorbell(redis, "drain")
    bind(both_engines, directory, settings)
    play(sandbox.world, 200, companies=4)
    deliver(both_engines, sandbox.world.events[::2])
    left = sandbox.calls.total() + 4
    assert not go_on(both_engines, directory, start(both_engines, "clock"), lambda: sandbox.calls.total() >= left)
    leave_a_replay_half_done(both_engines, sandbox.world.events[:40:2])
    write(both_engines, lambda tx: runs.create(tx, Task.CATCH_UP, "clock"))
    as_left_by_0006(both_engines)
    for _ in range(3):
        Repair(both_engines, directory, settings, bell).all()
        apply_all(both_engines)
    ended = {(row["task"], row["status"], row["requested_by"]) for row in rows(both_engines, Run)}
    assert {status for _, status, _ in ended} == {RunStatus.DONE}
    assert (Task.RESYNC, RunStatus.DONE, "new release") in ended  # which reads connections, as the older one did not
    assert differences(both_engines, sandbox.world.truth()) == []


def leave_a_replay_half_done(engine: Engine, events: list[JSON]) -> None:
    run_id = replay.start(engine, replay.Selection(ids=tuple(event["id"] for event in events)), "ann", "why")
    with runs.lease(engine, run_id) as held:
        assert held is not None
        write(engine, lambda tx: replay._step(tx, held))
    assert pending(engine) == len(events)


def as_left_by_0006(engine: Engine) -> None:
    """Take a database back to the release before connections, and up again."""
    known = [type for type in SUBSCRIBED if not type.startswith("connection.")]

    def forget(tx: Connection) -> None:
        tx.execute(update(Mirror).values(event_types=known))
        tx.execute(delete(Listing).where(Listing.name == "connections"))
        tx.execute(delete(Seen).where(Seen.kind == Kind.CONNECTION))

    write(engine, forget)
    downgrade(engine, "0006")
    upgrade(engine)
