"""A stateful test: a system and its WorkOS, what can happen in any order, and what must hold after each step."""

import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from operator import itemgetter

from flask.testing import FlaskClient
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from redis import Redis
from sqlalchemy import Engine, update

from models.database import in_transaction
from models.tables import (
    JOIN,
    ROLE_MAP,
    WORKSPACE_SETTINGS,
    Change,
    Drift,
    Event,
    EventStatus,
    MirrorState,
    RunStatus,
)
from models.types import db_now_plus
from models.views import workspace_members
from tests.support import JSON, accept, apply_all, differences, rows, sign
from tests.support.actors import by
from tests.support.past import members_at
from tests.support.resync import Between, Clock, client_of, continue_run, empty, make_reads_due, run_row
from worker.decision.roles import DEFAULT_ROLE_MAP, LOCAL_ROLES
from worker.errors import BusyError, OperatorError, WorkOSError
from worker.inbox.drain import DrainLimits
from worker.inbox.selection import Selection
from worker.kinds import KINDS
from worker.kinds.membership import MEMBERSHIP
from worker.kinds.organization import Organization
from worker.kinds.user import USER, User
from worker.mirror import auto_join_policy, role_map
from worker.mirror.apply import person_of
from worker.mirror.erasure import forget
from worker.mirror.retention import Periods, retain
from worker.queue.doorbell import Doorbell
from worker.repair import replay as replays
from worker.repair.catch_up import catch_up, update_complete_to
from worker.repair.reads import work_due
from worker.repair.resync.resync import start
from worker.runs import lease
from worker.sandbox import Sandbox, WorldError, play

LAG = timedelta(seconds=5)
PLACES = st.integers(0, 40)
SOME = st.lists(PLACES, min_size=1, max_size=8)
FEW = st.integers(1, 8)
WHYS = st.sampled_from(["asked for", "a mistake"])
LISTS = ("/organizations", "/user_management/", "/events")


BY_SLUG = {name for name, kind in KINDS.items() if not kind.delete_is_final}
COLUMNS: dict[str, set[str]] = {name: {"state", *kind.columns} for name, kind in KINDS.items()}
for name in ("user", "membership", "invitation"):
    COLUMNS[name] |= {"erased"}
COLUMNS["domain"] |= {"auto_join", "auto_join_reason"}
COLUMNS |= {
    ROLE_MAP: {"roles"},
    JOIN: {"state", "reasons", "why"},
    WORKSPACE_SETTINGS: {"auto_join", "default_role", "why"},
}


def broken_chains(changes: Iterable[JSON]) -> list[str]:
    """Faults in rows of `changes`: a missing column, no difference, or a `before` that is not the last `after`."""
    changes = list(changes)
    wrong: list[str] = []
    last: dict[tuple[str, ...], JSON] = {}
    erased = {row["object_id"] for row in changes if row["after"].get("erased")}
    for row in sorted(changes, key=lambda row: row["id"]):
        place = (row["organization_id"],) if row["kind"] == JOIN else ()
        key, before, after = (row["kind"], row["object_id"], *place), row["before"], row["after"]
        name = f"change {row['id']} of {row['kind']} {row['object_id']}"
        wrong_columns = [shown.keys() ^ COLUMNS[row["kind"]] for shown in (before, after) if shown]
        wrong += [f"{name}: columns {columns}" for columns in wrong_columns if columns]
        if key in last and last[key] != before:
            wrong.append(f"{name}: {last[key]} before, not {before}")
        if before == after and row["object_id"] not in erased:
            wrong.append(f"{name}: no difference")
        last[key] = after
    return wrong


class DeathError(BaseException):
    """A worker dies before it writes what it has read."""


class Simulation(RuleBasedStateMachine):
    """A mirror and its sandbox WorkOS. Actions in `planned` happen after one of the next answers, before it is used."""

    def __init__(self, engine: Engine, endpoint: FlaskClient, redis: Redis) -> None:
        super().__init__()
        self.engine, self.endpoint, self.clock = engine, endpoint, Clock()
        empty(engine, self.clock)
        self.sandbox = Sandbox(clock=self.clock).start()
        self.world = self.sandbox.world
        self.workos = Between(client_of(self.sandbox, redis), self._answered)
        self.planned: list[tuple[int, Callable[[], None]]] = []
        """Number of answers to wait for, and the action."""

    @rule(answers=FEW)
    def a_worker_will_die(self, answers: int) -> None:
        self.planned.append((answers, self._dies))

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self._ends()
        finally:
            self.workos.close()
            self.sandbox.stop()

    def _ends(self) -> None:
        """Let the system finish its work, and check that it converges."""
        raise NotImplementedError

    def _answered(self, _path: str) -> None:
        due = [action for answers, action in self.planned if answers == 1]
        self.planned = [(answers - 1, action) for answers, action in self.planned if answers > 1]
        for action in due:
            action()

    def _dies(self) -> None:
        raise DeathError


class History(Simulation):
    """Changes in WorkOS, webhooks in flight, and a system that receives, misses, repairs and replays."""

    def __init__(self, engine: Engine, endpoint: FlaskClient, redis: Redis) -> None:
        super().__init__(engine, endpoint, redis)
        self.bell = Doorbell(redis, "drain")
        self.on_the_way: list[JSON] = []
        self.world.subscribe(self.on_the_way.append)
        self.has_all_events = True
        self.followed: dict[int, JSON] = {}
        """Every change that a follower has seen, by id: also those that retention has deleted since."""
        self.tombstones: set[tuple[str, str]] = set()
        self.past: dict[int, list[JSON]] = {}
        """Change → who had access after it, for the last change that there was after each step."""

    @initialize(
        all_events=st.booleans(),
        children=st.booleans(),
        roles=st.sampled_from(["silently", "silently_same_version"]),
        keys=st.sampled_from(["always", "changed"]),
    )
    def begins(self, *, all_events: bool, children: bool, roles: str, keys: str) -> None:
        self.has_all_events = all_events
        role_deletion = "events" if all_events else roles
        self.sandbox.knobs.update({"ties": True, "children_deleted": children, "role_deletion": role_deletion})
        self.sandbox.knobs.update({"keys_in_events": keys})

    # WorkOS

    @rule(seed=PLACES, events=FEW)
    def life_goes_on(self, seed: int, events: int) -> None:
        play(self.world, events, companies=3, seed=seed)

    @precondition(lambda self: not self.has_all_events)
    @rule(what=st.sampled_from(["membership", "user", "domain", "organization"]), place=PLACES)
    def something_changes_without_event(self, what: str, place: int) -> None:
        with self.world.silently():
            if what != "organization":
                self._deletes(what, place)
            elif ids := list(self.world.organizations):
                self.world.update_organization(ids[place % len(ids)], name=f"Renamed {place}")

    @rule(what=st.sampled_from(["membership", "user", "organization"]), place=PLACES)
    def a_server_whose_clock_is_behind_deletes_something(self, what: str, place: int) -> None:
        self.clock.advance(seconds=-2)
        self._deletes(what, place)
        self.clock.advance(seconds=2)

    @rule(what=st.sampled_from(["organization", "user", "membership"]), place=PLACES, value=st.integers(0, 2))
    def the_product_sets_its_keys(self, what: str, place: int, value: int) -> None:
        keys: JSON = {"external_id": f"key_{value}" if value else None, "metadata": {"n": value} if value else {}}
        if what == "membership":
            keys = {"custom_attributes": keys["metadata"]}
        elif what == "organization":
            keys = {"stripe_customer_id": f"cus_{value}"} | keys
        if ids := list(getattr(self.world, f"{what}s")):
            getattr(self.world, f"update_{what}")(ids[place % len(ids)], **keys)

    @rule(slug=st.sampled_from(["billing", "viewer"]), place=PLACES, own=st.booleans(), ends=st.booleans())
    def a_role_is_given_or_deleted(self, slug: str, place: int, *, own: bool, ends: bool) -> None:
        memberships = list(self.world.memberships.values())
        held = memberships[place % len(memberships)] if memberships else None
        owner = held["organization_id"] if held and own else None
        with suppress(WorldError):
            if ends:
                self.world.delete_role(slug, organization_id=owner)
            elif held:
                with suppress(WorldError):
                    self.world.create_role(slug, organization_id=owner)
                self.world.update_membership(held["id"], roles=[slug])

    @rule(path=st.sampled_from(LISTS), status=st.sampled_from([0, 429, 500]), times=st.sampled_from([2, 7]))
    def workos_fails(self, path: str, status: int, times: int) -> None:
        self.sandbox.faults.fail(path, method="GET", status=status, times=times)

    @rule(seconds=st.sampled_from([1, 3, 30, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds=seconds)

    # Webhooks

    @rule(places=SOME)
    def some_arrive(self, places: list[int]) -> None:
        accept(self.endpoint, *self._off_the_way(places))

    @rule()
    def all_arrive(self) -> None:
        accept(self.endpoint, *self._off_the_way([0] * len(self.on_the_way)))

    @rule(places=SOME)
    def some_are_lost(self, places: list[int]) -> None:
        self._off_the_way(places)

    @rule(places=SOME)
    def some_are_refused_for_their_age(self, places: list[int]) -> None:
        for event in self._off_the_way(places):
            body = json.dumps(event).encode()
            late = {"WorkOS-Signature": sign(body, at=time.time() - 3600)}
            assert self.endpoint.post("/webhooks/workos", data=body, headers=late).status_code == 401

    @rule(places=SOME)
    def some_arrive_again_or_late(self, places: list[int]) -> None:
        events = self.world.events
        accept(self.endpoint, *(events[-1 - place % len(events)] for place in places if events))

    @rule(place=PLACES)
    def a_child_arrives_before_its_parents(self, place: int) -> None:
        children = [event for event in self.on_the_way if event["event"] == "organization_membership.created"]
        if children:
            self.on_the_way.remove(child := children[place % len(children)])
            accept(self.endpoint, child)

    @rule()
    def deletions_overtake_the_rest(self) -> None:
        overtaking = [place for place, event in enumerate(self.on_the_way) if event["event"].endswith(".deleted")]
        accept(self.endpoint, *(self.on_the_way.pop(place) for place in reversed(overtaking)))
        self.drains(500)

    # The system

    @rule(batch=st.sampled_from([1, 3, 500]))
    def drains(self, batch: int) -> None:
        apply_all(self.engine, DrainLimits(batch_size=batch))

    @rule()
    def catches_up(self) -> None:
        with suppress(WorkOSError, DeathError):
            catch_up(self.engine, self.workos, lag=LAG)

    @rule()
    def updates_complete_to(self) -> None:
        update_complete_to(self.engine)

    @rule(pages=st.integers(0, 12))
    def resyncs_a_little(self, pages: int) -> None:
        until = self.sandbox.calls.total() + pages
        with suppress(BusyError, DeathError):
            run_id = start(self.engine, by("test"))
            continue_run(self.engine, self.workos, run_id, lambda: self.sandbox.calls.total() >= until)

    @rule(place=PLACES)
    def resyncs_one_workspace(self, place: int) -> None:
        if ids := list(self.world.organizations):
            with suppress(BusyError, DeathError):
                run_id = start(self.engine, by("test"), organization_id=ids[place % len(ids)])
                continue_run(self.engine, self.workos, run_id)

    @rule()
    def reads_what_is_in_doubt(self) -> None:
        make_reads_due(self.engine)
        with suppress(DeathError):
            work_due(self.engine, self.workos, lambda: False)

    @rule(places=SOME)
    def replays(self, places: list[int]) -> None:
        done = sorted(row["id"] for row in rows(self.engine, Event) if row["status"] == EventStatus.DONE)
        if not done:
            return
        chosen = tuple({done[place % len(done)] for place in places})
        run_id = replays.start(self.engine, Selection(ids=chosen), by("test"), again=True)
        with lease(self.engine, run_id) as held:
            assert held is not None
            replays.replay(self.engine, held, self.bell, 1e6)

    @rule(roles=st.sampled_from([{}, {"billing": "admin"}, {"viewer": "admin"}]))
    def another_role_map_comes_into_force(self, roles: dict[str, str]) -> None:
        role_map.adopt(self.engine, DEFAULT_ROLE_MAP | roles)

    @rule(place=PLACES)
    def a_deleted_user_is_forgotten(self, place: int) -> None:
        if deleted := [row["id"] for row in rows(self.engine, User) if row["deleted_by"] and not row["erased"]]:
            user_id = deleted[place % len(deleted)]
            forget(self.engine, user_id, by("test"))
            self._erases_at_the_follower(user_id)

    @rule(number=st.integers(1, 60))
    def retention_deletes_old_changes(self, number: int) -> None:
        ids = sorted(row["id"] for row in rows(self.engine, Change))[:number]
        old = update(Change).where(Change.id.in_(ids)).values(at=db_now_plus(-400 * 86_400.0))
        in_transaction(self.engine, lambda tx: tx.execute(old))
        retain(self.engine, Periods())
        for user in rows(self.engine, User):
            if user["erased"]:  # memberships that arrived after the erasure are erased too
                self._erases_at_the_follower(user["id"])

    @rule(place=PLACES, act=st.sampled_from([auto_join_policy.block, auto_join_policy.unblock]), why=WHYS)
    def an_operator_decides_about_a_person(self, place: int, act: Callable[..., object], why: str) -> None:
        people, workspaces = rows(self.engine, User), rows(self.engine, Organization)
        if people and workspaces:
            workspace, person = workspaces[place % 2 % len(workspaces)], people[place % len(people)]
            with suppress(OperatorError):
                act(self.engine, workspace["id"], person["id"], by("ann", why))

    @rule(place=PLACES, role=st.sampled_from(LOCAL_ROLES), why=WHYS)
    def an_operator_sets_up_a_workspace(self, place: int, role: str, why: str) -> None:
        if workspaces := rows(self.engine, Organization):
            id = workspaces[place % len(workspaces)]["id"]
            auto_join_policy.set_workspace(self.engine, id, by("ann", why), default_role=role)

    # While a worker waits for WorkOS: after the n-th answer from now, and before anything is done with it

    @rule(answers=FEW, seed=PLACES, events=FEW)
    def life_will_continue_with_events(self, answers: int, seed: int, events: int) -> None:
        self.planned.append((answers, lambda: self._live_and_deliver(seed, events)))

    # Invariants after each step

    @invariant()
    def holds(self) -> None:
        self.no_one_has_access_whom_an_event_deleted()
        self.the_view_has_one_row_of_a_workspace_and_a_user()
        self.no_change_comes_behind_one_that_was_seen()
        self.the_changes_of_an_object_are_a_chain()
        self.a_tombstone_stays()
        self.no_access_changes_without_a_change()

    def no_one_has_access_whom_an_event_deleted(self) -> None:
        deleted = [row for row in rows(self.engine, Event) if row["type"].endswith(".deleted")]
        gone = {row["object_id"] for row in deleted if row["status"] == EventStatus.DONE and row["kind"] not in BY_SLUG}
        for member in rows(self.engine, workspace_members):
            assert not gone & {member["membership_id"], member["user_id"], member["organization_id"]}, member

    def the_view_has_one_row_of_a_workspace_and_a_user(self) -> None:
        pairs = [(row["organization_id"], row["user_id"]) for row in rows(self.engine, workspace_members)]
        assert len(pairs) == len(set(pairs))

    def no_change_comes_behind_one_that_was_seen(self) -> None:
        now = {row["id"]: row for row in rows(self.engine, Change)}
        seen = max(self.followed, default=0)
        assert not (behind := [id for id in now if id <= seen and id not in self.followed]), behind
        self.followed |= now

    def a_tombstone_stays(self) -> None:
        now: set[tuple[str, str]] = set()
        for kind in KINDS.keys() - BY_SLUG:
            now |= {(kind, row["id"]) for row in rows(self.engine, KINDS[kind].table) if row["deleted_by"] == "event"}
        assert now >= self.tombstones
        self.tombstones = now

    def the_changes_of_an_object_are_a_chain(self) -> None:
        assert not (broken := broken_chains(self.followed.values())), broken

    def no_access_changes_without_a_change(self) -> None:
        now = sorted(rows(self.engine, workspace_members), key=itemgetter("membership_id"))
        assert self.past.setdefault(max(self.followed, default=0), now) == now

    def who_had_access_is_still_known(self) -> None:
        erased = {row["id"] for row in rows(self.engine, User) if row["erased"]}
        [mirror] = rows(self.engine, MirrorState)
        for change_id, members in self.past.items():
            if change_id >= mirror["changes_dropped_to"]:
                then = [row | {"email": None} if row["user_id"] in erased else row for row in members]
                assert members_at(self.engine, change_id) == then

    # The end

    def _ends(self) -> None:
        """Read and compare everything, as the clock eventually does."""
        self.sandbox.faults.clear()
        self.planned.clear()
        self.another_role_map_comes_into_force({})
        for _ in range(2):
            self.clock.advance(seconds=60)
            catch_up(self.engine, self.workos, lag=LAG)
            apply_all(self.engine)
            self.holds()
        stored = {row["id"] for row in rows(self.engine, Event)}
        assert not (missed := [event["id"] for event in self.world.events if event["id"] not in stored]), missed
        self.reads_what_is_in_doubt()
        if self.has_all_events:
            self._is_equal()  # without any resync
        self._finishes_a_resync()  # that was left off, and listed long ago
        run_id = self._finishes_a_resync()
        if any(row["action"] == "withheld" and row["run_id"] == run_id for row in rows(self.engine, Drift)):
            # In so small a mirror a few deletions are many: an operator approves them.
            assert continue_run(self.engine, self.workos, start(self.engine, by("test", "they left"), approves=run_id))
        self.reads_what_is_in_doubt()
        self._is_equal()
        self.holds()
        self.who_had_access_is_still_known()
        assert {row["status"] for row in rows(self.engine, Event)} <= {EventStatus.DONE}

    def _is_equal(self) -> None:
        assert not (wrong := differences(self.engine, self.world.truth())), wrong

    def _finishes_a_resync(self) -> str:
        """Finish the interrupted full run, or else a new one; returns its id."""
        run_id = start(self.engine, by("test"))
        assert continue_run(self.engine, self.workos, run_id)
        assert (ended := run_row(self.engine, run_id))["status"] == RunStatus.DONE, ended["error"]
        return run_id

    # Inside

    def _erases_at_the_follower(self, user_id: str) -> None:
        """Blank the changes of a user and their memberships that only the follower still has, as a product must."""
        for row in self.followed.values():
            kind = KINDS.get(row["kind"])
            if kind in (USER, MEMBERSHIP) and person_of(kind.name, row["object_id"], row["after"]) == user_id:
                for shown in filter(None, (row["before"], row["after"])):
                    shown.update(dict.fromkeys(kind.personal))

    def _deletes(self, what: str, place: int) -> None:
        if ids := list(getattr(self.world, f"{what}s")):
            getattr(self.world, f"delete_{what}")(ids[place % len(ids)])

    def _off_the_way(self, places: list[int]) -> list[JSON]:
        return [self.on_the_way.pop(place % len(self.on_the_way)) for place in places if self.on_the_way]

    def _live_and_deliver(self, seed: int, events: int) -> None:
        self.life_goes_on(seed, events)
        for id, organization in list(self.world.organizations.items()):  # whichever was just read, it has changed
            self.world.update_organization(id, name=f"{organization['name'].split(' #')[0]} #{seed}")
        self.all_arrive()
        self.drains(500)
