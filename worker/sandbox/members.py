"""The contents of an organization: each operation changes the state and emits the events WorkOS would."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

from worker.sandbox import shapes
from worker.sandbox.state import JSON, State, WorldError, invalid, not_found

DEFAULT_ROLE = "member"


class Members(State):
    """The operations on the contents of organizations. World adds those on organizations, domains and users."""

    # Memberships

    def create_membership(
        self,
        organization_id: str,
        user_id: str,
        *,
        role: str = DEFAULT_ROLE,
        roles: Sequence[str] | None = None,
        status: str = "active",
    ) -> JSON:
        """Make a user a member (`status="pending"`: invite them). An inactive membership is activated instead."""
        with self.lock:
            self.find(self.organizations, "organization", organization_id)
            self.find(self.users, "user", user_id)
            slugs = self._require_roles(organization_id, list(roles) if roles else [role])
            existing = self.membership_of(organization_id, user_id)
            if existing is not None:
                if existing["status"] == "inactive":
                    return self._set_membership(existing["id"], status="active", **shapes.role_fields(slugs))
                raise self._exists(existing["status"])
            membership_id = self.new_id("om")
            at = self.stamp()
            record = shapes.membership(membership_id, organization_id, user_id, at, roles=slugs, status=status)
            self.memberships[membership_id] = record
            self.link(organization_id, "organization_membership", membership_id)
            self.link(user_id, "organization_membership", membership_id)
            self.emit("organization_membership.created", record)
            return record

    def update_membership(
        self,
        membership_id: str,
        *,
        role: str | None = None,
        roles: Sequence[str] | None = None,
        custom_attributes: JSON | None = None,
    ) -> JSON:
        """Replace the roles of a member, of which the first is also the field `role`, or the custom attributes."""
        with self.lock:
            organization_id = self.find(self.memberships, "organization_membership", membership_id)["organization_id"]
            slugs = list(roles) if roles else [role] if role else []
            if custom_attributes is not None:
                return self._set_membership(membership_id, custom_attributes=custom_attributes)
            if not slugs:
                return self.memberships[membership_id]
            return self._set_membership(
                membership_id, **shapes.role_fields(self._require_roles(organization_id, slugs))
            )

    def activate_membership(self, membership_id: str) -> JSON:
        """Activate a pending membership, as when the invited person accepts."""
        return self._set_membership(membership_id, status="active")

    def deactivate_membership(self, membership_id: str) -> JSON:
        """Deactivate a membership, which keeps its role. An inactive one stays inactive; a pending one is refused."""
        return self._switch_membership(membership_id, "inactive", "cannot_deactivate_pending_organization_membership")

    def reactivate_membership(self, membership_id: str) -> JSON:
        """Reactivate a membership. An active one stays active; a pending one is refused."""
        return self._switch_membership(membership_id, "active", "cannot_reactivate_pending_organization_membership")

    def delete_membership(self, membership_id: str) -> JSON:
        """Remove a member; a later membership of the same user gets a new id."""
        with self.lock:
            gone = self._drop_membership(membership_id)
            self.emit("organization_membership.deleted", gone)
            return gone

    def membership_of(self, organization_id: str, user_id: str) -> JSON | None:
        """Return the membership of a user in an organization, whatever its status; None if there is none."""
        with self.lock:
            ids = set(self.children(user_id, "organization_membership"))
            return next(
                (self.memberships[m] for m in ids if self.memberships[m]["organization_id"] == organization_id),
                None,
            )

    # Invitations

    def create_invitation(
        self,
        email: str,
        organization_id: str | None = None,
        *,
        inviter_user_id: str | None = None,
        role: str | None = None,
        days: float = 7,
    ) -> JSON:
        """Invite an address to an organization, or to the environment. It expires after `days`, without an event."""
        with self.lock:
            if organization_id is not None:
                self.find(self.organizations, "organization", organization_id)
            invitation_id = self.new_id("invitation")
            self.invitations[invitation_id] = shapes.invitation(
                invitation_id,
                email,
                self.stamp(),
                shapes.time_text(self.now() + timedelta(days=days)),
                organization_id=organization_id,
                inviter_user_id=inviter_user_id,
                role=role,
            )
            if organization_id is not None:
                self.link(organization_id, "invitation", invitation_id)
            self.emit("invitation.created", self.invitations[invitation_id])
            return self.invitations[invitation_id]

    def accept_invitation(self, invitation_id: str, user_id: str | None = None) -> JSON:
        """A user accepts. The membership is made by `create_membership`."""
        accepted = {"accepted_at": self.stamp(), "accepted_user_id": user_id}
        return self._set_invitation(invitation_id, "invitation.accepted", state="accepted", **accepted)

    def revoke_invitation(self, invitation_id: str) -> JSON:
        """Revoke an invitation."""
        return self._set_invitation(invitation_id, "invitation.revoked", state="revoked", revoked_at=self.stamp())

    def resend_invitation(self, invitation_id: str, days: float = 7) -> JSON:
        """Send an invitation again, with a new expiry time."""
        expires_at = shapes.time_text(self.now() + timedelta(days=days))
        return self._set_invitation(invitation_id, "invitation.resent", expires_at=expires_at)

    # Sessions. They do not end when a membership or an organization is deleted: what WorkOS does then is not known.

    def create_session(
        self,
        user_id: str,
        organization_id: str | None = None,
        *,
        impersonator: JSON | None = None,
        days: float = 7,
    ) -> JSON:
        """Sign a user in, to an organization or to none. It expires after `days`, without an event."""
        with self.lock:
            self.find(self.users, "user", user_id)
            at, id = self.stamp(), self.new_id("session")
            expires_at = shapes.time_text(self.now() + timedelta(days=days))
            self.sessions[id] = shapes.session(
                id, user_id, at, expires_at, organization_id=organization_id, impersonator=impersonator
            )
            self.link(user_id, "session", id)
            self.emit("session.created", self.sessions[id])
            return self.sessions[id]

    def revoke_session(self, session_id: str) -> JSON:
        """End an active session."""
        with self.lock:
            if self.show_session(session_id)["status"] != "active":
                raise invalid("The session is not active.", "session_not_active", status=400)
            ended = {"status": "revoked", "ended_at": self.stamp()}
            self.sessions[session_id] = self.changed(self.sessions[session_id], **ended)
            self.emit("session.revoked", self.sessions[session_id])
            return self.sessions[session_id]

    # Roles

    def create_role(self, slug: str, *, name: str | None = None, organization_id: str | None = None) -> JSON:
        """Create a role of the environment, or of one organization. The slug of a deleted role may be used again."""
        with self.lock:
            if organization_id is not None:
                self.find(self.organizations, "organization", organization_id)
            if (organization_id, slug) in self.roles:
                raise invalid(f"Role '{slug}' already exists.", "role_slug_conflict", "slug", status=409)
            named = name or slug.capitalize()
            made = shapes.role(self.new_id("role"), organization_id, slug, self.stamp(), name=named)
            return self._set_role("created", made)

    def update_role(self, slug: str, *, organization_id: str | None = None, **values: Any) -> JSON:
        """Change `name`, `description` or `permissions` of a role."""
        with self.lock:
            return self._set_role("updated", self.changed(self._role(organization_id, slug), **values))

    def delete_role(self, slug: str, *, organization_id: str | None = None) -> JSON:
        """Delete a role and take it from its members; see Knobs.role_deletion for the events."""
        with self.lock:
            role = self._role(organization_id, slug)
            del self.roles[organization_id, slug]
            self.emit(self._role_event(role, "deleted"), shapes.role_in_event(role))
            ids = (
                self.memberships
                if organization_id is None
                else self.children(organization_id, "organization_membership")
            )
            for membership_id in list(ids):
                # An organization's own role of the same slug outlives the environment's.
                if (self.memberships[membership_id]["organization_id"], slug) not in self.roles:
                    self._take_role(membership_id, slug)
            return role

    # Permissions

    def create_permission(self, slug: str, *, name: str | None = None, resource_type: str = "organization") -> JSON:
        """Make a permission. A deleted slug may be made again."""
        with self.lock:
            if slug in self.permissions:
                raise invalid(f"Permission '{slug}' already exists.", "permission_slug_conflict", "slug", status=409)
            named, id = name or slug.capitalize(), self.new_id("perm")
            self.permissions[slug] = shapes.permission(id, slug, self.stamp(), name=named, resource_type=resource_type)
            self.emit("permission.created", self.permissions[slug])
            return self.permissions[slug]

    def update_permission(self, slug: str, **values: Any) -> JSON:
        """Change `name` or `description` of a permission."""
        with self.lock:
            self.permissions[slug] = self.changed(self.find(self.permissions, "permission", slug), **values)
            self.emit("permission.updated", self.permissions[slug])
            return self.permissions[slug]

    def delete_permission(self, slug: str) -> JSON:
        """Delete a permission. Roles still list its slug."""
        with self.lock:
            gone = self.find(self.permissions, "permission", slug)
            del self.permissions[slug]
            self.emit("permission.deleted", gone)
            return gone

    # Connections

    def create_connection(
        self,
        organization_id: str,
        name: str,
        *,
        connection_type: str = "OktaSAML",
        domains: Sequence[str] = (),
    ) -> JSON:
        """Create an SSO connection; no event is emitted before it is activated."""
        with self.lock:
            self.find(self.organizations, "organization", organization_id)
            own = [{"object": "connection_domain", "id": self.new_id("conn_domain"), "domain": d} for d in domains]
            connection_id = self.new_id("conn")
            made = shapes.connection(
                connection_id, organization_id, self.stamp(), name=name, kind=connection_type, domains=own
            )
            self.connections[connection_id] = made
            self.link(organization_id, "connection", connection_id)
            return made

    def activate_connection(self, connection_id: str) -> JSON:
        """Switch a connection on."""
        return self._set_connection(connection_id, "connection.activated", state="active", status="linked")

    def deactivate_connection(self, connection_id: str) -> JSON:
        """Switch a connection off."""
        return self._set_connection(connection_id, "connection.deactivated", state="inactive", status="unlinked")

    def delete_connection(self, connection_id: str) -> JSON:
        """Remove a connection."""
        with self.lock:
            gone = self._drop_connection(connection_id)
            self.emit("connection.deleted", gone)
            return gone

    def update_certificate(
        self, connection_id: str, *, days: int, certificate_type: str = "ResponseSigning", renewed: bool = False
    ) -> JSON:
        """Report that a connection's SAML certificate must be renewed, or was. It expires in `days`."""
        with self.lock:
            found = self.find(self.connections, "connection", connection_id)
            expires_at = shapes.time_text(self.now() + timedelta(days=days))
            data = shapes.certificate(found, certificate_type, expires_at, days, self.stamp() if renewed else None)
            self.emit(f"connection.saml_certificate_{'renewed' if renewed else 'renewal_required'}", data)
            return data

    # Helpers

    def _require_roles(self, organization_id: str, slugs: list[str]) -> list[str]:
        for slug in slugs:
            if (None, slug) not in self.roles and (organization_id, slug) not in self.roles:
                raise not_found("role", slug)
        return slugs

    def _exists(self, status: str) -> WorldError:
        if status == "pending":
            message = "Pending organization memberships cannot be reactivated."
            return invalid(message, "cannot_reactivate_pending_organization_membership", status=400)
        message = "The user is already a member of the organization."
        return invalid(message, "organization_membership_already_exists", status=409)

    def _set_membership(self, membership_id: str, **values: Any) -> JSON:
        with self.lock:
            found = self.find(self.memberships, "organization_membership", membership_id)
            self.memberships[membership_id] = self.changed(found, **values)
            self.emit("organization_membership.updated", self.memberships[membership_id])
            return self.memberships[membership_id]

    def _set_invitation(self, invitation_id: str, kind: str, **values: Any) -> JSON:
        """Change an invitation that is pending and not expired."""
        with self.lock:
            if self.show_invitation(invitation_id)["state"] != "pending":
                raise invalid("The invitation is not pending.", "invitation_not_pending", status=400)
            self.invitations[invitation_id] = self.changed(self.invitations[invitation_id], **values)
            self.emit(kind, self.invitations[invitation_id])
            return self.invitations[invitation_id]

    def _switch_membership(self, membership_id: str, status: str, refusal: str) -> JSON:
        with self.lock:
            found = self.find(self.memberships, "organization_membership", membership_id)
            if found["status"] == "pending":
                raise invalid("The organization membership is pending.", refusal, status=400)
            return found if found["status"] == status else self._set_membership(membership_id, status=status)

    def _set_connection(self, connection_id: str, kind: str, **values: Any) -> JSON:
        with self.lock:
            self.connections[connection_id] = self.changed(
                self.find(self.connections, "connection", connection_id), **values
            )
            self.emit(kind, self.connections[connection_id])
            return self.connections[connection_id]

    def _set_role(self, what: Literal["created", "updated"], role: JSON) -> JSON:
        self.roles[role["organization_id"], role["slug"]] = role
        self.emit(self._role_event(role, what), shapes.role_in_event(role))
        return role

    def _role(self, organization_id: str | None, slug: str) -> JSON:
        if (organization_id, slug) not in self.roles:
            raise not_found("role", slug)
        return self.roles[organization_id, slug]

    @staticmethod
    def _role_event(role: JSON, what: str) -> str:
        return f"{'role' if role['organization_id'] is None else 'organization_role'}.{what}"

    def _take_role(self, membership_id: str, slug: str) -> None:
        """Take a deleted role from a membership. A member without another role gets the default role."""
        found = self.memberships[membership_id]
        slugs = [role["slug"] for role in found["roles"]]
        if slug not in slugs:
            return
        values = shapes.role_fields([other for other in slugs if other != slug] or [DEFAULT_ROLE])
        if self.knobs.role_deletion == "silently_same_version":
            self.memberships[membership_id] = {**found, **values}
        elif self.knobs.role_deletion == "silently":
            self.memberships[membership_id] = self.changed(found, **values)
        else:
            self._set_membership(membership_id, **values)

    # A delete event carries the last state: its `updated_at` does not change.

    def _drop_membership(self, membership_id: str) -> JSON:
        gone = self.find(self.memberships, "organization_membership", membership_id)
        self.unlink(gone["organization_id"], "organization_membership", membership_id)
        self.unlink(gone["user_id"], "organization_membership", membership_id)
        return self.memberships.pop(membership_id)

    def _drop_connection(self, connection_id: str) -> JSON:
        gone = self.find(self.connections, "connection", connection_id)
        self.unlink(gone["organization_id"], "connection", connection_id)
        return shapes.connection_deleted(self.connections.pop(connection_id))
