"""Event type → snapshot: one table that reads top to bottom. To act on a new type, add its line."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from models.tables import Kind
from worker.decision import payload
from worker.decision.decide import DATE_STEP
from worker.decision.payload import Envelope, Fields, Snapshot, live, parse_json, role_at, tombstone
from worker.errors import PayloadError

RoleMap = Mapping[str, str]
Handler = Callable[[Fields, Envelope, RoleMap], Snapshot]


def _organization(data: Fields, envelope: Envelope, _roles: RoleMap) -> Snapshot:
    return live(Kind.ORGANIZATION, data, payload.organization(data), envelope)


def _organization_deleted(data: Fields, envelope: Envelope, _roles: RoleMap) -> Snapshot:
    return tombstone(Kind.ORGANIZATION, data, payload.organization(data), envelope)


def _user(data: Fields, envelope: Envelope, _roles: RoleMap) -> Snapshot:
    return live(Kind.USER, data, payload.user(data), envelope)


def _user_deleted(data: Fields, envelope: Envelope, _roles: RoleMap) -> Snapshot:
    return tombstone(Kind.USER, data, payload.user(data), envelope)


def _membership(data: Fields, envelope: Envelope, roles: RoleMap) -> Snapshot:
    return live(Kind.MEMBERSHIP, data, payload.membership(data, roles), envelope)


def _membership_deleted(data: Fields, envelope: Envelope, roles: RoleMap) -> Snapshot:
    return tombstone(Kind.MEMBERSHIP, data, payload.membership(data, roles, strict=False), envelope)


def _domain(data: Fields, envelope: Envelope, _roles: RoleMap) -> Snapshot:
    return live(Kind.DOMAIN, data, payload.domain(data), envelope)


def _domain_deleted(data: Fields, envelope: Envelope, _roles: RoleMap) -> Snapshot:
    return tombstone(Kind.DOMAIN, data, payload.domain(data, strict=False), envelope)


def _domain_failed(data: Fields, envelope: Envelope, _roles: RoleMap) -> Snapshot:
    # The only domain event that nests its object (docs/workos.md, Organizations and domains).
    nested = data.nested("organization_domain")
    content = payload.domain(nested) | {"verification": "failed", "reason": data.text("reason")}
    return live(Kind.DOMAIN, nested, content, envelope)


def _role(data: Fields, envelope: Envelope, _roles: RoleMap) -> Snapshot:
    return role_at(data, envelope, deleted=False)


def _role_deleted(data: Fields, envelope: Envelope, _roles: RoleMap) -> Snapshot:
    return role_at(data, envelope, deleted=True)


def _connection(data: Fields, envelope: Envelope, _roles: RoleMap) -> Snapshot:
    return live(Kind.CONNECTION, data, payload.connection(data), envelope)


def _connection_deleted(data: Fields, envelope: Envelope, _roles: RoleMap) -> Snapshot:
    return tombstone(Kind.CONNECTION, data, payload.connection(data), envelope)


def _domain_read(data: Fields, envelope: Envelope, _roles: RoleMap) -> Snapshot:
    content = payload.domain(data)
    if content["verification"] == "failed":
        del content["reason"]  # only the event tells it
    return live(Kind.DOMAIN, data, content, envelope)


def _role_read(data: Fields, envelope: Envelope, _roles: RoleMap) -> Snapshot:
    # Ordered as role events are, by time alone: the reading shows the role as of its last update.
    return role_at(data, replace(envelope, created_at=data.time("updated_at")), deleted=False)


HANDLERS: dict[str, Handler] = {
    "organization.created": _organization,
    "organization.updated": _organization,
    "organization.deleted": _organization_deleted,
    "organization_domain.created": _domain,
    "organization_domain.updated": _domain,
    "organization_domain.verified": _domain,
    "organization_domain.verification_failed": _domain_failed,
    "organization_domain.deleted": _domain_deleted,
    "organization_membership.created": _membership,
    "organization_membership.updated": _membership,
    "organization_membership.deleted": _membership_deleted,
    "user.created": _user,
    "user.updated": _user,
    "user.deleted": _user_deleted,
    "role.created": _role,
    "role.updated": _role,
    "role.deleted": _role_deleted,
    "organization_role.created": _role,
    "organization_role.updated": _role,
    "organization_role.deleted": _role_deleted,
    "connection.activated": _connection,
    "connection.deactivated": _connection,
    "connection.deleted": _connection_deleted,
}
SUBSCRIBED = sorted(HANDLERS)
"""The event types acted on: a webhook endpoint gets them and catch-up asks for them. Every other type is ignored."""

OBJECTS: dict[Kind, Handler] = {
    Kind.ORGANIZATION: _organization,
    Kind.USER: _user,
    Kind.MEMBERSHIP: _membership,
    Kind.DOMAIN: _domain_read,
    Kind.ROLE: _role_read,
    Kind.CONNECTION: _connection,
}


def read_object(kind: Kind, item: object, read_at: datetime, roles: RoleMap) -> Snapshot:
    """Return the snapshot of an object as the API shows it.

    Its version is its own `updated_at`, then the time of the reading: of two events in the same millisecond the
    reading showed the later one. WorkOS tells that time in whole seconds; the end of the second is meant, for events
    of its beginning were shown too. Those of its end were not: what is stale by this alone is in doubt (`doubt`).

    Args:
        kind: what it is.
        item: the raw JSON value.
        read_at: WorkOS's time of the reading.
        roles: WorkOS role slug → local role.

    Raises:
        PayloadError: the object cannot be used; its message names the field.
    """
    return OBJECTS[kind](Fields(item, kind.value), Envelope("", read_at + DATE_STEP), roles)


def read_event(event_id: str, type: str, body: bytes, roles: RoleMap) -> tuple[Envelope, Snapshot | None]:
    """Return an event's envelope and the snapshot it brings; None for a type that is ignored.

    Args:
        event_id: the event's id, as the inbox keeps it.
        type: the event's type.
        body: the raw bytes of the whole event.
        roles: WorkOS role slug → local role.

    Raises:
        PayloadError: the data cannot be used; its message names the field.
    """
    try:
        event = parse_json(body)
    except (ValueError, RecursionError) as error:
        raise PayloadError("body", "is not JSON") from error
    if not isinstance(event, dict):
        raise PayloadError("body", "is not an object")
    envelope = Envelope(event_id, payload.parse_time(event.get("created_at")))
    handler = HANDLERS.get(type)
    return envelope, handler(Fields(event.get("data"), "data"), envelope, roles) if handler else None
