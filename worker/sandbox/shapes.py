"""The documented JSON shapes of WorkOS: stored objects (as in events) and what the API makes of them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

JSON = dict[str, Any]

HOST_KEYS = ("external_id", "stripe_customer_id", "metadata", "custom_attributes")
"""Fields whose values come from the product. Some payloads omit them."""
REASON_EXPIRED = "domain_verification_period_expired"
REASON_TAKEN = "domain_verified_by_other_organization"


def time_text(moment: datetime) -> str:
    """Return an aware time in WorkOS's format: 2021-06-25T19:07:33.155Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def time_of(text: str) -> datetime:
    """Return the aware time, in UTC, of an ISO 8601 text. Without an offset, it is in UTC. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def event(event_id: str, kind: str, data: JSON, at: str) -> JSON:
    """The envelope of an event."""
    return {"id": event_id, "object": "event", "event": kind, "data": data, "created_at": at, "context": {}}


def organization(organization_id: str, name: str, at: str, external_id: str | None, metadata: JSON | None) -> JSON:
    """An organization as it is stored, without its domains."""
    return {
        "object": "organization",
        "id": organization_id,
        "name": name,
        "allow_profiles_outside_organization": False,
        "external_id": external_id,
        "stripe_customer_id": None,
        "metadata": metadata or {},
        "created_at": at,
        "updated_at": at,
    }


def with_domains(organization: JSON, domains: Sequence[JSON]) -> JSON:
    """An organization as the API and events show it."""
    return {**organization, "domains": list(domains)}


def domain(domain_id: str, organization_id: str, name: str, state: str, at: str) -> JSON:
    """An organization domain, the same in API and events."""
    return {
        "object": "organization_domain",
        "id": domain_id,
        "organization_id": organization_id,
        "domain": name,
        "state": state,
        "verification_prefix": None,
        "verification_token": None,
        "verification_strategy": "manual" if state == "verified" else "dns",
        "created_at": at,
        "updated_at": at,
    }


def user(user_id: str, email: str, at: str, *, first_name: str | None, last_name: str | None, verified: bool) -> JSON:
    """A user, the same in API and events."""
    return {
        "object": "user",
        "id": user_id,
        "email": email,
        "email_verified": verified,
        "name": None,
        "first_name": first_name,
        "last_name": last_name,
        "profile_picture_url": None,
        "last_sign_in_at": None,
        "external_id": None,
        "metadata": {},
        "locale": None,
        "created_at": at,
        "updated_at": at,
    }


def role_fields(roles: Sequence[str]) -> JSON:
    """The fields `role` (the first one) and `roles` of a membership."""
    return {"role": {"slug": roles[0]}, "roles": [{"slug": slug} for slug in roles]}


def membership(
    membership_id: str, organization_id: str, user_id: str, at: str, *, roles: Sequence[str], status: str
) -> JSON:
    """A membership as events carry it."""
    return {
        "object": "organization_membership",
        "id": membership_id,
        "user_id": user_id,
        "organization_id": organization_id,
        "status": status,
        **role_fields(roles),
        "custom_attributes": {},
        "directory_managed": False,
        "created_at": at,
        "updated_at": at,
    }


def membership_in_api(membership: JSON, user: JSON, organization_name: str) -> JSON:
    """A membership as the API shows it: with its user."""
    return {**membership, "organization_name": organization_name, "user": user}


def role(role_id: str, organization_id: str | None, slug: str, at: str, *, name: str) -> JSON:
    """A role as it is stored; `organization_id` is None for a role of the environment."""
    return {
        "id": role_id,
        "organization_id": organization_id,
        "slug": slug,
        "name": name,
        "description": None,
        "resource_type_slug": "organization",
        "permissions": [],
        "created_at": at,
        "updated_at": at,
    }


def role_in_event(role: JSON) -> JSON:
    """The data of `role.*` (no name) or `organization_role.*`; neither has an id."""
    if role["organization_id"] is None:
        names = ("slug", "resource_type_slug", "permissions", "created_at", "updated_at")
        return {"object": "role", **{name: role[name] for name in names}}
    return {"object": "organization_role", **{name: value for name, value in role.items() if name != "id"}}


def role_in_api(role: JSON) -> JSON:
    """A role as the authorization API lists it: here it does have an id."""
    kind = "EnvironmentRole" if role["organization_id"] is None else "OrganizationRole"
    shown = {name: value for name, value in role.items() if name != "organization_id"}
    return {"object": "role", "type": kind, **shown}


def permission(permission_id: str, slug: str, at: str, *, name: str, resource_type: str) -> JSON:
    """A permission, the same in API and events."""
    return {
        "object": "permission",
        "id": permission_id,
        "slug": slug,
        "name": name,
        "description": None,
        "system": False,
        "resource_type_slug": resource_type,
        "created_at": at,
        "updated_at": at,
    }


def invitation(
    invitation_id: str,
    email: str,
    at: str,
    expires_at: str,
    *,
    organization_id: str | None,
    inviter_user_id: str | None,
    role: str | None,
) -> JSON:
    """A pending invitation as events carry it."""
    return {
        "object": "invitation",
        "id": invitation_id,
        "email": email,
        "state": "pending",
        "accepted_at": None,
        "revoked_at": None,
        "expires_at": expires_at,
        "organization_id": organization_id,
        "inviter_user_id": inviter_user_id,
        "accepted_user_id": None,
        "role_slug": role,
        "created_at": at,
        "updated_at": at,
    }


def invitation_in_api(invitation: JSON) -> JSON:
    """An invitation as the API shows it: with its secrets."""
    token = f"token-of-{invitation['id']}"
    url = f"https://invite.example/?invitation_token={token}"
    return {**invitation, "token": token, "accept_invitation_url": url}


def session(
    session_id: str, user_id: str, at: str, expires_at: str, *, organization_id: str | None, impersonator: JSON | None
) -> JSON:
    """An active session, the same in API and events."""
    return {
        "object": "session",
        "id": session_id,
        "user_id": user_id,
        "organization_id": organization_id,
        "status": "active",
        "auth_method": "impersonation" if impersonator else "password",
        "impersonator": impersonator,
        "ip_address": "192.0.2.1",
        "user_agent": "Mozilla/5.0",
        "expires_at": expires_at,
        "ended_at": None,
        "created_at": at,
        "updated_at": at,
    }


def connection(
    connection_id: str, organization_id: str | None, at: str, *, name: str, kind: str, domains: Sequence[JSON]
) -> JSON:
    """An SSO connection as `connection.activated` carries it, not yet active."""
    return {
        "object": "connection",
        "id": connection_id,
        "organization_id": organization_id,
        "name": name,
        "connection_type": kind,
        "state": "inactive",
        "status": "unlinked",
        "external_key": connection_id.removeprefix("conn_").lower(),
        "domains": list(domains),
        "created_at": at,
        "updated_at": at,
    }


def connection_in_api(connection: JSON) -> JSON:
    """A connection as the API shows it: without its external key."""
    return {name: value for name, value in connection.items() if name != "external_key"}


def connection_deleted(connection: JSON) -> JSON:
    """The shorter data of `connection.deleted`."""
    left_out = ("status", "external_key", "domains")
    return {name: value for name, value in connection.items() if name not in left_out}


def certificate(connection: JSON, kind: str, expires_at: str, days: int, renewed_at: str | None) -> JSON:
    """Return the data of an event about a SAML certificate: renewed at a time, or (None) to be renewed."""
    shown = {"id": connection["id"], "organization_id": connection["organization_id"]}
    about = {"certificate_type": kind, "expiry_date": expires_at}
    if renewed_at is not None:
        return {"connection": shown, "certificate": about, "renewed_at": renewed_at}
    return {"connection": shown, "certificate": about | {"is_expired": days <= 0}, "days_until_expiry": days}


def error(message: str, code: str | None = None, **more: Any) -> JSON:
    """The body of an error answer."""
    return {"message": message, **({"code": code} if code else {}), **more}


def listing(items: list[JSON], before: str | None, after: str | None) -> JSON:
    """One page of a listing; a cursor is None where there is no further page."""
    return {"object": "list", "data": items, "list_metadata": {"before": before, "after": after}}
