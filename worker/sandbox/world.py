"""A WorkOS environment: organizations, their domains, and users. members.py has the contents of organizations."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from worker.sandbox import shapes
from worker.sandbox.knobs import Knobs
from worker.sandbox.members import DEFAULT_ROLE, Members
from worker.sandbox.state import JSON, WorldError, invalid

__all__ = ["OPERATIONS", "World", "WorldError"]


class World(Members):
    """One environment. Every operation is thread-safe, returns the object and raises WorldError if refused.

    `seed` makes all random choices and ids repeatable, except for the time in an id; `clock` returns the time (aware).
    """

    def __init__(self, seed: int = 0, clock: Callable[[], datetime] | None = None, knobs: Knobs | None = None) -> None:
        super().__init__(seed, clock, knobs)
        self._emails: dict[str, str] = {}  # lower case, to user id
        at = self.stamp()
        for slug in ("admin", DEFAULT_ROLE):  # every environment starts with these two, without events
            self.roles[None, slug] = shapes.role(self.new_id("role"), None, slug, at, name=slug.capitalize())

    # Organizations

    def create_organization(
        self,
        name: str,
        *,
        domains: Sequence[tuple[str, str]] = (),
        external_id: str | None = None,
        metadata: JSON | None = None,
    ) -> JSON:
        """Create an organization. `domains` are pairs of name and state, whose events follow its own."""
        with self.lock:
            organization_id = self.new_id("org")
            self.organizations[organization_id] = shapes.organization(
                organization_id, name, self.stamp(), external_id, metadata
            )
            self.emit("organization.created", shapes.with_domains(self.organizations[organization_id], []))
            for domain, state in domains:
                self.create_domain(organization_id, domain, state)
            return self.show_organization(organization_id)

    def update_organization(self, organization_id: str, **values: Any) -> JSON:
        """Change `name`, one of `shapes.HOST_KEYS` or `allow_profiles_outside_organization`."""
        with self.lock:
            self.organizations[organization_id] = self.changed(
                self.find(self.organizations, "organization", organization_id), **values
            )
            shown = self.show_organization(organization_id)
            self.emit("organization.updated", shown)
            return shown

    def delete_organization(self, organization_id: str) -> JSON:
        """Delete an organization and its contents; see Knobs.children_deleted for the events."""
        with self.lock:
            shown = self.show_organization(organization_id)
            gone = [
                ("organization_domain.deleted", self._drop_domain(d))
                for d in self.children(organization_id, "organization_domain")
            ]
            gone += [
                ("organization_membership.deleted", self._drop_membership(m))
                for m in self.children(organization_id, "organization_membership")
            ]
            gone += [
                ("connection.deleted", self._drop_connection(c)) for c in self.children(organization_id, "connection")
            ]
            for invitation_id in self.children(organization_id, "invitation"):
                del self.invitations[invitation_id]  # WorkOS has no event for it
            for key in [key for key in self.roles if key[0] == organization_id]:
                gone.append(("organization_role.deleted", shapes.role_in_event(self.roles.pop(key))))
            del self.organizations[organization_id]
            self._emit_deleted("organization.deleted", shown, gone)
            return shown

    # Domains

    def create_domain(self, organization_id: str, domain: str, state: str = "pending") -> JSON:
        """Add a domain as `pending` or already `verified`. Two organizations may have the same domain."""
        with self.lock:
            self.find(self.organizations, "organization", organization_id)
            domain_id = self.new_id("org_domain")
            self.domains[domain_id] = shapes.domain(domain_id, organization_id, domain.lower(), state, self.stamp())
            self.link(organization_id, "organization_domain", domain_id)
            self.emit("organization_domain.created", self.domains[domain_id])
            return self.domains[domain_id]

    def verify_domain(self, domain_id: str) -> JSON:
        """Verify a domain."""
        return self._set_domain(domain_id, "organization_domain.verified", state="verified")

    def fail_domain(self, domain_id: str, reason: str = shapes.REASON_EXPIRED) -> JSON:
        """Let the verification fail. The event has the domain nested beside the reason."""
        with self.lock:
            self.domains[domain_id] = self.changed(
                self.find(self.domains, "organization_domain", domain_id), state="failed"
            )
            data = {"reason": reason, "organization_domain": self.domains[domain_id]}
            self.emit("organization_domain.verification_failed", data)
            return self.domains[domain_id]

    def update_domain(self, domain_id: str, **values: Any) -> JSON:
        """Change any field of a domain, e.g. `state`; emits organization_domain.updated only."""
        return self._set_domain(domain_id, "organization_domain.updated", **values)

    def delete_domain(self, domain_id: str) -> JSON:
        """Remove a domain."""
        with self.lock:
            gone = self._drop_domain(domain_id)
            self.emit("organization_domain.deleted", gone)
            return gone

    # Users

    def create_user(
        self,
        email: str,
        *,
        first_name: str | None = None,
        last_name: str | None = None,
        email_verified: bool = True,
    ) -> JSON:
        """Create a user. No other user may have the e-mail address."""
        with self.lock:
            self._require_free(email)
            user_id = self.new_id("user")
            self.users[user_id] = shapes.user(
                user_id, email, self.stamp(), first_name=first_name, last_name=last_name, verified=email_verified
            )
            self._emails[email.lower()] = user_id
            self.emit("user.created", self.users[user_id])
            return self.users[user_id]

    def update_user(self, user_id: str, **values: Any) -> JSON:
        """Change fields of a user, e.g. `email`, `email_verified`, `external_id`, `last_sign_in_at`."""
        with self.lock:
            old = self.find(self.users, "user", user_id)
            if "email" in values and values["email"].lower() != old["email"].lower():
                self._require_free(values["email"])
                del self._emails[old["email"].lower()]
                self._emails[values["email"].lower()] = user_id
            self.users[user_id] = self.changed(old, **values)
            self.emit("user.updated", self.users[user_id])
            return self.users[user_id]

    def delete_user(self, user_id: str) -> JSON:
        """Delete a user and the memberships of that user; see Knobs.children_deleted."""
        with self.lock:
            user = self.find(self.users, "user", user_id)
            gone = [
                ("organization_membership.deleted", self._drop_membership(m))
                for m in self.children(user_id, "organization_membership")
            ]
            if not self.knobs.sessions_outlive_users:
                for session_id in self.children(user_id, "session"):
                    del self.sessions[session_id]
            del self.users[user_id]
            del self._emails[user["email"].lower()]
            self._emit_deleted("user.deleted", user, gone)
            return user

    def user_by_email(self, email: str) -> JSON | None:
        """Return the user with this address, in upper or lower case; None if there is none."""
        with self.lock:
            user_id = self._emails.get(email.lower())
            return self.users[user_id] if user_id else None

    # Helpers

    def _require_free(self, email: str) -> None:
        if email.lower() in self._emails:
            raise invalid("This email is not available.", "email_not_available", "email", status=400)

    def _emit_deleted(self, kind: str, parent: JSON, children: list[tuple[str, JSON]]) -> None:
        """Emit the delete events of a parent and, if the knob says so, of its children, in random order."""
        deletes = [(kind, parent), *(children if self.knobs.children_deleted else [])]
        self.random.shuffle(deletes)
        for each, data in deletes:
            self.emit(each, data)

    def _set_domain(self, domain_id: str, kind: str, **values: Any) -> JSON:
        with self.lock:
            self.domains[domain_id] = self.changed(self.find(self.domains, "organization_domain", domain_id), **values)
            self.emit(kind, self.domains[domain_id])
            return self.domains[domain_id]

    # A delete event carries the last state: its `updated_at` does not change.

    def _drop_domain(self, domain_id: str) -> JSON:
        gone = self.find(self.domains, "organization_domain", domain_id)
        self.unlink(gone["organization_id"], "organization_domain", domain_id)
        return self.domains.pop(domain_id)


OPERATIONS = frozenset(
    name
    for name in (*vars(Members), *vars(World))
    if name.split("_")[0]
    in {
        *("create", "update", "delete", "verify", "fail", "activate", "deactivate", "reactivate"),
        *("accept", "revoke", "resend"),
    }
)
