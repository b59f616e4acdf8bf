"""The routes of the HTTP API and their handlers. gate.py checks keys and limits, and injects faults."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from worker.sandbox.delivery import Deliveries, Endpoint, checked_url
from worker.sandbox.paging import events_page, page
from worker.sandbox.state import JSON, WorldError, invalid, not_found
from worker.sandbox.world import World

STATUSES = ("active", "inactive", "pending")


@dataclass
class Environment:
    """The world that one API key opens."""

    world: World
    deliveries: Deliveries


@dataclass
class Call:
    """One request: ids in the path, query (repeated names joined by commas), JSON body."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: JSON

    def required(self, name: str) -> str:
        """Return a field of the body; raise WorldError 422 if it is missing."""
        value = self.body.get(name)
        if not isinstance(value, str) or not value:
            raise invalid(f"{name} must be a string", f"{name}_required", name)
        return value

    def fields(self, *names: str) -> JSON:
        """Return those of the fields that the body has."""
        return {name: self.body[name] for name in names if name in self.body}


Reply = tuple[int, JSON | None]
Handler = Callable[[Environment, Call], Reply]


def _domains(body: JSON) -> list[tuple[str, str]]:
    """The (name, state) pairs of `domain_data`, or of the older `domains`."""
    data = [(each["domain"], each.get("state", "pending")) for each in body.get("domain_data") or []]
    return data + [(name, "pending") for name in body.get("domains") or []]


# Organizations and their domains


def _list_organizations(environment: Environment, call: Call) -> Reply:
    world = environment.world
    ids = list(world.organizations)
    domains = {name for name in call.query.get("domains", "").split(",") if name}
    search = call.query.get("search", "").lower()
    if domains:
        holders = {d["organization_id"] for d in list(world.domains.values()) if d["domain"] in domains}
        ids = [organization_id for organization_id in ids if organization_id in holders]
    if search:
        ids = [
            organization_id for organization_id in ids if search in world.organizations[organization_id]["name"].lower()
        ]
    return 200, page(ids, world.show_organization, call.query)


def _get_organization(environment: Environment, call: Call) -> Reply:
    return 200, environment.world.show_organization(call.path["id"])


def _get_organization_by_external_id(environment: Environment, call: Call) -> Reply:
    world, wanted = environment.world, call.path["external_id"]
    for organization_id, organization in list(world.organizations.items()):
        if organization["external_id"] == wanted:
            return 200, world.show_organization(organization_id)
    raise not_found("organization", wanted)


def _create_organization(environment: Environment, call: Call) -> Reply:
    values = call.fields("external_id", "metadata")
    return 201, environment.world.create_organization(call.required("name"), domains=_domains(call.body), **values)


def _update_organization(environment: Environment, call: Call) -> Reply:
    """Update an organization. If the body has domains, they replace all current ones."""
    world, organization_id = environment.world, call.path["id"]
    values = call.fields("name", "external_id", "stripe_customer_id", "metadata", "allow_profiles_outside_organization")
    shown = world.show_organization(organization_id)
    if "domain_data" in call.body or "domains" in call.body:
        wanted, held = dict(_domains(call.body)), {each["domain"]: each for each in shown["domains"]}
        for name in held.keys() - wanted.keys():
            world.delete_domain(held[name]["id"])
        for name, state in wanted.items():
            if name not in held:
                world.create_domain(organization_id, name, state)
            elif held[name]["state"] != state:
                world.update_domain(held[name]["id"], state=state)
    return 200, world.update_organization(organization_id, **values)


def _delete_organization(environment: Environment, call: Call) -> Reply:
    environment.world.delete_organization(call.path["id"])
    return 202, None


def _get_domain(environment: Environment, call: Call) -> Reply:
    return 200, environment.world.find(environment.world.domains, "organization_domain", call.path["id"])


def _create_domain(environment: Environment, call: Call) -> Reply:
    return 201, environment.world.create_domain(call.required("organization_id"), call.required("domain"))


def _verify_domain(environment: Environment, call: Call) -> Reply:
    return 200, environment.world.verify_domain(call.path["id"])


def _delete_domain(environment: Environment, call: Call) -> Reply:
    environment.world.delete_domain(call.path["id"])
    return 204, None


# Users


def _list_users(environment: Environment, call: Call) -> Reply:
    world = environment.world
    ids = list(world.users)
    organization_id, email = call.query.get("organization_id"), call.query.get("email")
    if organization_id is not None:
        members = world.children(organization_id, "organization_membership")
        ids = sorted({world.memberships[m]["user_id"] for m in members})
    if email is not None:
        found = world.user_by_email(email)
        ids = [found["id"]] if found is not None and found["id"] in ids else []
    return 200, page(ids, world.users.__getitem__, call.query)


def _get_user(environment: Environment, call: Call) -> Reply:
    return 200, environment.world.find(environment.world.users, "user", call.path["id"])


def _create_user(environment: Environment, call: Call) -> Reply:
    values = call.fields("first_name", "last_name")
    verified = bool(call.body.get("email_verified"))
    return 201, environment.world.create_user(call.required("email"), email_verified=verified, **values)


def _update_user(environment: Environment, call: Call) -> Reply:
    names = (
        "email",
        "first_name",
        "last_name",
        "name",
        "email_verified",
        "metadata",
        "external_id",
        "locale",
    )
    return 200, environment.world.update_user(call.path["id"], **call.fields(*names))


def _delete_user(environment: Environment, call: Call) -> Reply:
    environment.world.delete_user(call.path["id"])
    return 204, None


def _list_sessions(environment: Environment, call: Call) -> Reply:
    world, user_id = environment.world, call.path["id"]
    ids = [id for id in world.children(user_id, "session") if id in world.sessions]
    if not ids:
        world.find(world.users, "user", user_id)
    return 200, page(ids, world.show_session, call.query)


def _revoke_session(environment: Environment, call: Call) -> Reply:
    environment.world.revoke_session(call.required("session_id"))
    return 200, None


# Memberships


def _list_memberships(environment: Environment, call: Call) -> Reply:
    """List memberships of the organization or user in the query; without `statuses`, only active ones."""
    world, query = environment.world, call.query
    organization_id, user_id = query.get("organization_id"), query.get("user_id")
    if not organization_id and not user_id:
        raise invalid("One of organization_id or user_id is required.", "organization_id_or_user_id_required")
    statuses = [status for status in query.get("statuses", "active").split(",") if status]
    for status in statuses:
        if status not in STATUSES:
            raise invalid(f"each value in statuses must be one of: {', '.join(STATUSES)}", "invalid_status", "statuses")
    ids = world.children(organization_id or user_id or "", "organization_membership")
    found = [world.memberships[membership_id] for membership_id in ids]
    chosen = [m["id"] for m in found if m["status"] in statuses and user_id in (None, m["user_id"])]
    return 200, page(chosen, world.show_membership, query)


def _get_membership(environment: Environment, call: Call) -> Reply:
    return 200, environment.world.show_membership(call.path["id"])


def _create_membership(environment: Environment, call: Call) -> Reply:
    world, body = environment.world, call.body
    made = world.create_membership(
        call.required("organization_id"),
        call.required("user_id"),
        role=body.get("role_slug") or "member",
        roles=body.get("role_slugs"),
    )
    return 201, world.show_membership(made["id"])


def _update_membership(environment: Environment, call: Call) -> Reply:
    body = call.body
    environment.world.update_membership(call.path["id"], role=body.get("role_slug"), roles=body.get("role_slugs"))
    return _get_membership(environment, call)


def _deactivate_membership(environment: Environment, call: Call) -> Reply:
    environment.world.deactivate_membership(call.path["id"])
    return _get_membership(environment, call)


def _reactivate_membership(environment: Environment, call: Call) -> Reply:
    environment.world.reactivate_membership(call.path["id"])
    return _get_membership(environment, call)


def _delete_membership(environment: Environment, call: Call) -> Reply:
    environment.world.delete_membership(call.path["id"])
    return 204, None


# Invitations


def _list_invitations(environment: Environment, call: Call) -> Reply:
    world, query = environment.world, call.query
    wanted = {name: query[name] for name in ("organization_id", "email") if name in query}
    found = [i["id"] for i in world.invitations.values() if all(i[name] == value for name, value in wanted.items())]
    return 200, page(found, world.show_invitation, query)


def _get_invitation(environment: Environment, call: Call) -> Reply:
    return 200, environment.world.show_invitation(call.path["id"])


def _send_invitation(environment: Environment, call: Call) -> Reply:
    world, body = environment.world, call.body
    values = {"inviter_user_id": body.get("inviter_user_id"), "role": body.get("role_slug")}
    days = float(body.get("expires_in_days") or 7)
    made = world.create_invitation(call.required("email"), body.get("organization_id"), days=days, **values)
    return 201, world.show_invitation(made["id"])


def _revoke_invitation(environment: Environment, call: Call) -> Reply:
    environment.world.revoke_invitation(call.path["id"])
    return _get_invitation(environment, call)


def _resend_invitation(environment: Environment, call: Call) -> Reply:
    environment.world.resend_invitation(call.path["id"])
    return _get_invitation(environment, call)


def _accept_invitation(environment: Environment, call: Call) -> Reply:
    environment.world.accept_invitation(call.path["id"])
    return _get_invitation(environment, call)


# Roles, permissions, connections, events


def _list_roles(environment: Environment, call: Call) -> Reply:
    return 200, {"object": "list", "data": environment.world.show_roles(call.path.get("id"))}


def _get_role(environment: Environment, call: Call) -> Reply:
    """Return a role of the environment. For an organization, return its own role with this slug if it has one."""
    shown = [r for r in environment.world.show_roles(call.path.get("id")) if r["slug"] == call.path["slug"]]
    if not shown:
        raise not_found("role", call.path["slug"])
    return 200, shown[-1]


def _list_permissions(environment: Environment, call: Call) -> Reply:
    permissions = environment.world.permissions
    return 200, page(list(permissions), permissions.__getitem__, call.query)


def _get_permission(environment: Environment, call: Call) -> Reply:
    return 200, environment.world.find(environment.world.permissions, "permission", call.path["slug"])


def _list_connections(environment: Environment, call: Call) -> Reply:
    world = environment.world
    wanted = {name: call.query[name] for name in ("organization_id", "connection_type") if name in call.query}
    found = [c for c in world.connections.values() if all(c[name] == value for name, value in wanted.items())]
    return 200, page([c["id"] for c in found], world.show_connection, call.query)


def _get_connection(environment: Environment, call: Call) -> Reply:
    return 200, environment.world.show_connection(call.path["id"])


def _delete_connection(environment: Environment, call: Call) -> Reply:
    environment.world.delete_connection(call.path["id"])
    return 204, None


def _list_events(environment: Environment, call: Call) -> Reply:
    return 200, events_page(environment.world, call.query)


# Webhook endpoints


def _endpoint(environment: Environment, call: Call) -> Endpoint:
    found = environment.deliveries.endpoints.get(call.path["id"])
    if found is None:
        raise not_found("webhook_endpoint", call.path["id"])
    return found


def _list_endpoints(environment: Environment, call: Call) -> Reply:
    endpoints = environment.deliveries.endpoints
    return 200, page(list(endpoints), lambda endpoint_id: endpoints[endpoint_id].as_json(with_secret=False), call.query)


def _url(given: object) -> str:
    try:
        return checked_url(str(given))
    except ValueError as error:
        raise invalid(str(error), "endpoint_url_invalid", "endpoint_url") from error


def _create_endpoint(environment: Environment, call: Call) -> Reply:
    made = environment.deliveries.add_endpoint(_url(call.required("endpoint_url")), events=call.body.get("events"))
    return 201, made.as_json(with_secret=True)


def _update_endpoint(environment: Environment, call: Call) -> Reply:
    found = _endpoint(environment, call)
    found.url = _url(call.body.get("endpoint_url", found.url))
    found.events = call.body.get("events", found.events)
    found.enabled = call.body.get("status", "enabled" if found.enabled else "disabled") == "enabled"
    found.updated_at = environment.world.stamp()
    return 200, found.as_json(with_secret=False)


def _delete_endpoint(environment: Environment, call: Call) -> Reply:
    environment.deliveries.remove_endpoint(_endpoint(environment, call).id)
    return 204, None


_MEMBERSHIPS = "/user_management/organization_memberships"
_INVITATIONS = "/user_management/invitations"

ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/organizations", _list_organizations),
    ("POST", "/organizations", _create_organization),
    ("GET", "/organizations/external_id/{external_id}", _get_organization_by_external_id),
    ("GET", "/organizations/{id}", _get_organization),
    ("PUT", "/organizations/{id}", _update_organization),
    ("DELETE", "/organizations/{id}", _delete_organization),
    ("POST", "/organization_domains", _create_domain),
    ("GET", "/organization_domains/{id}", _get_domain),
    ("POST", "/organization_domains/{id}/verify", _verify_domain),
    ("DELETE", "/organization_domains/{id}", _delete_domain),
    ("GET", "/user_management/users", _list_users),
    ("POST", "/user_management/users", _create_user),
    ("GET", "/user_management/users/{id}", _get_user),
    ("PUT", "/user_management/users/{id}", _update_user),
    ("DELETE", "/user_management/users/{id}", _delete_user),
    ("GET", "/user_management/users/{id}/sessions", _list_sessions),
    ("POST", "/user_management/sessions/revoke", _revoke_session),
    ("GET", _MEMBERSHIPS, _list_memberships),
    ("POST", _MEMBERSHIPS, _create_membership),
    ("GET", _MEMBERSHIPS + "/{id}", _get_membership),
    ("PUT", _MEMBERSHIPS + "/{id}", _update_membership),
    ("DELETE", _MEMBERSHIPS + "/{id}", _delete_membership),
    ("PUT", _MEMBERSHIPS + "/{id}/deactivate", _deactivate_membership),
    ("PUT", _MEMBERSHIPS + "/{id}/reactivate", _reactivate_membership),
    ("GET", _INVITATIONS, _list_invitations),
    ("POST", _INVITATIONS, _send_invitation),
    ("GET", _INVITATIONS + "/{id}", _get_invitation),
    ("POST", _INVITATIONS + "/{id}/accept", _accept_invitation),
    ("POST", _INVITATIONS + "/{id}/revoke", _revoke_invitation),
    ("POST", _INVITATIONS + "/{id}/resend", _resend_invitation),
    ("GET", "/authorization/roles", _list_roles),
    ("GET", "/authorization/roles/{slug}", _get_role),
    ("GET", "/authorization/organizations/{id}/roles", _list_roles),
    ("GET", "/authorization/organizations/{id}/roles/{slug}", _get_role),
    ("GET", "/authorization/permissions", _list_permissions),
    ("GET", "/authorization/permissions/{slug}", _get_permission),
    ("GET", "/connections", _list_connections),
    ("GET", "/connections/{id}", _get_connection),
    ("DELETE", "/connections/{id}", _delete_connection),
    ("GET", "/events", _list_events),
    ("GET", "/webhook_endpoints", _list_endpoints),
    ("POST", "/webhook_endpoints", _create_endpoint),
    ("PATCH", "/webhook_endpoints/{id}", _update_endpoint),
    ("DELETE", "/webhook_endpoints/{id}", _delete_endpoint),
]


def answer(handler: Handler, environment: Environment, call: Call) -> Reply:
    """Run one call while the world is locked; a refusal becomes an error response."""
    with environment.world.lock:
        try:
            return handler(environment, call)
        except WorldError as refusal:
            return refusal.status, refusal.body
