"""A WorkOS environment: its objects, its log of events, its clock and its ids."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from worker.sandbox import shapes
from worker.sandbox.knobs import Knobs

JSON = dict[str, Any]
RoleKey = tuple[str | None, str]  # (organization id or None for the environment, slug)

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_NOT_FOUND = {
    "organization": "Organization",
    "organization_domain": "Organization Domain",
    "user": "User",
    "organization_membership": "Organization Membership",
    "connection": "Connection",
    "event": "Event",
    "role": "Role",
    "permission": "Permission",
    "invitation": "Invitation",
    "session": "Session",
    "webhook_endpoint": "Webhook Endpoint",
}


class WorldError(Exception):
    """An operation that WorkOS refuses, with the HTTP status and the body of its answer."""

    def __init__(self, status: int, body: JSON) -> None:
        super().__init__(str(body.get("message", "")))
        self.status = status
        self.body = body


def not_found(kind: str, object_id: str) -> WorldError:
    """Return the 404 for an object of `kind`, the name in its field `object`."""
    message = f"{_NOT_FOUND[kind]} not found: '{object_id}'."
    return WorldError(404, shapes.error(message, "entity_not_found", entity_id=object_id))


def invalid(message: str, code: str, field: str | None = None, status: int = 422) -> WorldError:
    """Return the error for a refused request."""
    errors = [{"code": code, "message": message, **({"field": field} if field else {})}]
    return WorldError(status, shapes.error(message, code, errors=errors))


def real_clock() -> datetime:
    """Return the real time. Looks up `datetime` at each call, so that freezegun takes effect."""
    return datetime.now(UTC)


class State:
    """The tables of one environment. Stored objects are never changed in place, so events may share them.

    Every table is in order of creation, and so in order of ids. Hold `lock` while you read from several tables.
    """

    def __init__(self, seed: int = 0, clock: Callable[[], datetime] | None = None, knobs: Knobs | None = None) -> None:
        self.lock = threading.RLock()
        self.knobs = knobs or Knobs()
        self.clock = clock or real_clock
        self.random = Random(f"{seed}-world")
        self.organizations: dict[str, JSON] = {}
        self.domains: dict[str, JSON] = {}
        self.users: dict[str, JSON] = {}
        self.memberships: dict[str, JSON] = {}
        self.connections: dict[str, JSON] = {}
        self.roles: dict[RoleKey, JSON] = {}
        self.permissions: dict[str, JSON] = {}  # by slug
        self.invitations: dict[str, JSON] = {}
        self.sessions: dict[str, JSON] = {}
        self.events: list[JSON] = []
        self.event_positions: dict[str, int] = {}
        self._of_parent: dict[tuple[str, str], dict[str, None]] = {}
        self._listeners: list[Callable[[JSON], None]] = []
        self._slug_times: dict[tuple[str | None, str, str], datetime] = {}
        self._last_keys: dict[str, JSON] = {}
        self.context: JSON = {}
        """The `context` of new events, such as `{"actor": {"id": ..., "source": "dashboard", "name": ...}}`."""
        self._silent = 0
        # Ids come from a generator of their own: how many are drawn must not shift other random choices.
        self._id_random = Random(f"{seed}-ids")
        self._id_time = 0
        self._id_tail = self._id_random.getrandbits(79)

    # Time and ids

    def now(self) -> datetime:
        """Return the environment's time (aware, UTC)."""
        return self.clock().astimezone(UTC)

    def stamp(self) -> str:
        """Return the current time in WorkOS's format."""
        return shapes.time_text(self.now())

    def new_id(self, prefix: str) -> str:
        """Return `prefix` and a ULID. The ids of a world ascend, even if its clock stops or goes back."""
        with self.lock:
            self._id_time = max(self._id_time, int(self.now().timestamp() * 1000))
            self._id_tail += self._id_random.randrange(1, 2**52)
            value = (self._id_time << 80) | (self._id_tail & (2**80 - 1))
            return prefix + "_" + "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5))

    # Events

    def subscribe(self, listener: Callable[[JSON], None]) -> None:
        """Call `listener(event)` for every new event, in order, in the emitting thread, under the lock."""
        self._listeners.append(listener)

    @contextmanager
    def silently(self) -> Iterator[None]:
        """Let operations emit no events, so that a mirror can find their changes only by reading the API."""
        with self.lock:
            self._silent += 1
            try:
                yield
            finally:
                self._silent -= 1

    def emit(self, kind: str, data: JSON) -> JSON | None:
        """Log an event of `kind` with `data` and notify the listeners; returns None inside `silently()`."""
        with self.lock:
            if self._silent:
                return None
            if data.get("object") == "organization_membership" and not self.knobs.roles_in_events:
                data = {name: value for name, value in data.items() if name != "roles"}
            if self.knobs.keys_in_events == "changed":
                data = self._without_unchanged_keys(data)
            event = shapes.event(self.new_id("event"), kind, data, self._event_time(data)) | {"context": self.context}
            self.event_positions[event["id"]] = len(self.events)
            self.events.append(event)
            for listener in self._listeners:
                listener(event)
            return event

    def event(self, event_id: str) -> JSON:
        """An event of the log, or WorldError 404."""
        with self.lock:
            position = self.event_positions.get(event_id)
            if position is None:
                raise not_found("event", event_id)
            return self.events[position]

    def _without_unchanged_keys(self, data: JSON) -> JSON:
        """The data without those of `shapes.HOST_KEYS` that are as in the last event of the object."""
        last = self._last_keys.setdefault(data.get("id", ""), {})
        shown = {name: value for name, value in data.items() if name not in last or last[name] != value}
        last |= {name: data[name] for name in shapes.HOST_KEYS if name in data}
        return shown

    def _event_time(self, data: JSON) -> str:
        """Return the time of an event: now, or later than the last event of an object that a slug identifies.

        Only this time orders the events of such an object.
        """
        now = self.now()
        if "slug" in data and not self.knobs.ties:
            key = (data.get("organization_id"), data["object"], data["slug"])
            if last := self._slug_times.get(key):
                now = max(now, last + timedelta(milliseconds=1))
            self._slug_times[key] = now
        return shapes.time_text(now)

    # Tables

    def changed(self, record: JSON, **values: Any) -> JSON:
        """Return a new version of a record, with a later `updated_at`; with `Knobs.ties`, it may be the same time.

        Raises WorldError for a field that such a record does not have.
        """
        for name in values.keys() - record.keys():
            raise invalid(f"property {name} should not exist", "invalid_request_parameters", name)
        known = datetime.fromisoformat(record["updated_at"])
        least = known if self.knobs.ties else known + timedelta(milliseconds=1)
        return {**record, **values, "updated_at": shapes.time_text(max(least, self.now()))}

    def link(self, parent: str, kind: str, object_id: str) -> None:
        """Record that an object of `kind` belongs to `parent`."""
        self._of_parent.setdefault((parent, kind), {})[object_id] = None

    def unlink(self, parent: str, kind: str, object_id: str) -> None:
        """Undo `link`."""
        self._of_parent.get((parent, kind), {}).pop(object_id, None)

    def children(self, parent: str, kind: str) -> list[str]:
        """Return the ids of the objects of `kind` that belong to a parent, oldest first."""
        with self.lock:
            return list(self._of_parent.get((parent, kind), {}))

    def find(self, table: dict[str, JSON], kind: str, object_id: str) -> JSON:
        """Return the stored object; raise WorldError 404 if there is none."""
        with self.lock:
            found = table.get(object_id)
        if found is None:
            raise not_found(kind, object_id)
        return found

    # Reads of the API

    def show_organization(self, organization_id: str) -> JSON:
        """Return an organization with its domains; raise WorldError 404 if there is none."""
        with self.lock:
            record = self.find(self.organizations, "organization", organization_id)
            return shapes.with_domains(
                record, [self.domains[d] for d in self.children(organization_id, "organization_domain")]
            )

    def show_membership(self, membership_id: str) -> JSON:
        """Return a membership with its user; raise WorldError 404 if there is none."""
        with self.lock:
            record = self.find(self.memberships, "organization_membership", membership_id)
            name = self.organizations[record["organization_id"]]["name"]
            return shapes.membership_in_api(record, self.users[record["user_id"]], name)

    def show_roles(self, organization_id: str | None) -> list[JSON]:
        """Return the environment's roles, followed by those of the organization, if one is given.

        Raises WorldError 404 if there is no such organization.
        """
        with self.lock:
            if organization_id is not None:
                self.find(self.organizations, "organization", organization_id)
            own = [role for key, role in self.roles.items() if organization_id and key[0] == organization_id]
            return [shapes.role_in_api(r) for key, r in self.roles.items() if key[0] is None] + [
                shapes.role_in_api(r) for r in own
            ]

    def show_connection(self, connection_id: str) -> JSON:
        """Return a connection; raise WorldError 404 if there is none."""
        return shapes.connection_in_api(self.find(self.connections, "connection", connection_id))

    def show_invitation(self, invitation_id: str) -> JSON:
        """Return an invitation with its secrets; raise WorldError 404 if there is none. It expires at `expires_at`."""
        record = self.find(self.invitations, "invitation", invitation_id)
        expired = record["state"] == "pending" and shapes.time_of(record["expires_at"]) <= self.now()
        return shapes.invitation_in_api({**record, "state": "expired" if expired else record["state"]})

    def show_session(self, session_id: str) -> JSON:
        """Return a session; raise WorldError 404 if there is none. An active one expires at `expires_at`."""
        record = self.find(self.sessions, "session", session_id)
        expired = record["status"] == "active" and shapes.time_of(record["expires_at"]) <= self.now()
        return {**record, "status": "expired"} if expired else record

    def truth(self) -> JSON:
        """Return all objects, as the API shows them. A mirror must end up equal to them.

        `roles` are the stored ones, with `organization_id` (None: of the environment).
        """
        with self.lock:
            return {
                "organizations": [self.show_organization(object_id) for object_id in self.organizations],
                "users": list(self.users.values()),
                "memberships": [self.show_membership(object_id) for object_id in self.memberships],
                "roles": list(self.roles.values()),
                "permissions": list(self.permissions.values()),
                "connections": [self.show_connection(object_id) for object_id in self.connections],
                "invitations": [self.show_invitation(object_id) for object_id in self.invitations],
            }
