"""A minimal product that uses workos-sync: signed-in users can enter their own workspaces and no others.

It shares no code with workos-sync. It reads the mirror over SQL or HTTP, and receives changes by a hook.
Authentication is left out: `POST /sign-in` accepts any user id, which a real product must not do.
"""

import hashlib
import os
from collections import Counter
from http import HTTPStatus
from typing import Any, Protocol

import idna
import requests
from flask import Flask, Response, abort, jsonify, request, session
from sqlalchemy import create_engine, text
from standardwebhooks import Webhook, WebhookVerificationError

MAX_STALENESS = 60
"""Upper bound on the age, in seconds, of what decides whether somebody may enter."""


class StaleError(Exception):
    """The mirror cannot answer within `MAX_STALENESS`. Nobody may enter until it can."""


class Mirror(Protocol):
    """The answers that the product needs from the mirror."""

    def role_of(self, user_id: str, organization_id: str) -> str | None:
        """Return a user's role in a workspace, at most `MAX_STALENESS` old; None for no access. Raises `StaleError`."""

    def workspaces_of(self, user_id: str) -> list[dict[str, Any]]:
        """Return the workspaces that a user may enter, with the user's role in each."""

    def auto_join_for(self, email: str) -> dict[str, Any] | None:
        """Return the workspace that a person with this verified address joins; None if none."""


def normalize(email: str) -> tuple[str, str] | None:
    """Return an address in the form that the mirror compares, and its domain; None if it is not an address.

    Both are in lower case; the domain is encoded with IDNA (UTS 46, non-transitional) and has no trailing dot. Do not
    use Python's codec "idna": it follows an older rule that turns straße.de into strasse.de, which is another domain.
    """
    local, _, host = email.rpartition("@")
    try:
        domain = idna.encode(host.rstrip("."), uts46=True, transitional=False).decode().lower()
    except UnicodeError:
        return None
    return (f"{local.lower()}@{domain}", domain) if local and "." in domain else None


def hash_of(address: str) -> str:
    """Return the hash of a normalized address. The mirror keeps it even after it has erased the address."""
    return hashlib.sha256(f"workos-sync:{address}".encode()).hexdigest()


class SqlMirror:
    """Reads the views in workos-sync's database. Use a database role that can only read the views."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)

    def role_of(self, user_id: str, organization_id: str) -> str | None:
        """Return a user's role in a workspace. One statement, in which no row means stale."""
        query = """
            SELECT member.role
            FROM mirror_status AS status
            LEFT JOIN workspace_members AS member
              ON member.organization_id = :organization_id AND member.user_id = :user_id
            WHERE status.state = 'current' AND status.age_seconds BETWEEN 0 AND :max_staleness
              AND NOT EXISTS (
                SELECT 1 FROM uncertain_access AS uncertain
                WHERE uncertain.organization_id IN ('', :organization_id) AND uncertain.user_id IN ('', :user_id))
        """
        asked = {"user_id": user_id, "organization_id": organization_id, "max_staleness": MAX_STALENESS}
        with self._engine.connect() as connection:
            row = connection.execute(text(query), asked).one_or_none()
        if row is None:
            raise StaleError
        role: str | None = row.role
        return role

    def workspaces_of(self, user_id: str) -> list[dict[str, Any]]:
        """Return the workspaces that a user may enter."""
        query = (
            "SELECT organization_id, workspace_name, role FROM workspace_members WHERE user_id = :user_id ORDER BY 2"
        )
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(query), {"user_id": user_id}).mappings()]

    def auto_join_for(self, email: str) -> dict[str, Any] | None:
        """Return the workspace that a verified address joins, unless its owner is blocked or was removed from it."""
        query = """
            SELECT d.organization_id, d.default_role FROM auto_join_domains AS d
            WHERE d.domain = :domain AND NOT EXISTS (
                SELECT 1 FROM auto_join_blocks AS b
                WHERE b.organization_id = d.organization_id AND b.email_hash = :hash)
        """
        normalized = normalize(email)
        if normalized is None:
            return None
        address, domain = normalized
        with self._engine.connect() as connection:
            row = connection.execute(text(query), {"domain": domain, "hash": hash_of(address)}).mappings().one_or_none()
            return dict(row) if row else None


class HttpMirror:
    """Reads the JSON API with a token from API_TOKENS."""

    def __init__(self, url: str, token: str) -> None:
        self._url = f"{url}/api/v1"
        self._http = requests.Session()
        self._http.headers["Authorization"] = f"Bearer {token}"

    def role_of(self, user_id: str, organization_id: str) -> str | None:
        """Return a user's role in a workspace."""
        asked: dict[str, str | int] = {"user_id": user_id, "organization_id": organization_id}
        asked["max_staleness"] = MAX_STALENESS
        response = self._http.get(f"{self._url}/access", params=asked, timeout=5)
        if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            raise StaleError
        response.raise_for_status()
        role: str | None = response.json()["role"]
        return role

    def _get(self, path: str, **params: str) -> Any:
        response = self._http.get(f"{self._url}/{path}", params=params, timeout=5)
        response.raise_for_status()
        return response.json()

    def _all(self, path: str, **params: str) -> list[dict[str, Any]]:
        """Return all items of a listing. `next` of one page is `after` of the following page; null on the last page."""
        page = self._get(path, **params)
        items: list[dict[str, Any]] = page["items"]
        while page["next"] is not None:
            page = self._get(path, **params, after=page["next"])
            items += page["items"]
        return items

    def workspaces_of(self, user_id: str) -> list[dict[str, Any]]:
        """Return the workspaces that a user may enter."""
        columns = ("organization_id", "workspace_name", "role")
        found = [{name: item[name] for name in columns} for item in self._all("members", user_id=user_id)]
        return sorted(found, key=lambda workspace: str(workspace["workspace_name"]))

    def auto_join_for(self, email: str) -> dict[str, Any] | None:
        """Return the workspace that a verified address joins."""
        found: dict[str, Any] | None = self._get("auto-join", email=email)["auto_join"]
        return found


def create_app(mirror: Mirror, hook_secret: str) -> Flask:  # noqa: C901 - one file, to be read from top to bottom
    """Return the product's Flask application.

    Args:
        mirror: where to read workspaces and roles.
        hook_secret: the hook's secret in HOOK_SECRETS.
    """
    app = Flask(__name__)
    app.secret_key = os.urandom(32)
    ended: Counter[tuple[str, str]] = Counter()  # A real product stores this in its database.

    def generation(user_id: str, organization_id: str) -> int:
        """Return a number that increases when sessions of this user, this workspace, or both are ended."""
        return ended[user_id, ""] + ended["", organization_id] + ended[user_id, organization_id]

    def enter(user_id: str, organization_id: str) -> None:
        session.update(
            user_id=user_id, organization_id=organization_id, generation=generation(user_id, organization_id)
        )

    def role_in(organization_id: str) -> str:
        """Return the user's role in a workspace now. Call it on every request; access can end."""
        if "user_id" not in session:
            abort(401)
        if session["generation"] != generation(session["user_id"], session["organization_id"]):
            abort(401)
        return mirror.role_of(session["user_id"], organization_id) or abort(403)

    @app.errorhandler(StaleError)
    def fail_closed(_error: StaleError) -> tuple[str, int]:
        return "try again later", 503

    @app.post("/sign-in")
    def sign_in() -> Response:
        """Start a session, and list the workspaces to choose from: `role_in` decides whether the user may enter one."""
        enter(request.form["user_id"], "")
        return jsonify(mirror.workspaces_of(session["user_id"]))

    @app.post("/switch/<organization_id>")
    def switch(organization_id: str) -> Response:
        """Enter another workspace."""
        role = role_in(organization_id)
        enter(session["user_id"], organization_id)
        return jsonify(organization_id=organization_id, role=role)

    @app.get("/keys")
    def keys() -> Response:
        """Return the API keys of the current workspace; for admins only."""
        if role_in(session.get("organization_id", "")) != "admin":
            abort(403)
        return jsonify(organization_id=session["organization_id"], keys=["sk_1"])

    @app.post("/sign-up")
    def sign_up() -> Response:
        """Call this only after the address is verified. With AUTO_JOIN=provision, workos-sync adds the membership."""
        return jsonify(mirror.auto_join_for(request.form["email"]))

    @app.post("/hooks/workos-sync")
    def changed() -> tuple[str, int]:
        """End the sessions of people whose access has ended.

        A hook may be late or repeated, so the current state is read from the mirror.
        """
        try:
            message = Webhook(hook_secret).verify(request.get_data(), dict(request.headers))
        except WebhookVerificationError:
            abort(401)
        data = message["data"]
        if data["kind"] == "membership":
            user_id, organization_id = data["after"]["user_id"], data["organization_id"]
            if all(row["organization_id"] != organization_id for row in mirror.workspaces_of(user_id)):
                ended[user_id, organization_id] += 1
        elif message["type"] == "user.deleted":
            ended[data["object_id"], ""] += 1
        elif message["type"] == "organization.deleted":
            ended["", data["object_id"]] += 1
        return "", 204

    return app


def main() -> Flask:
    """Return the application, configured from the environment: `flask --app app:main run`."""
    if url := os.environ.get("MIRROR_DATABASE_URL"):
        return create_app(SqlMirror(url), os.environ["HOOK_SECRET"])
    return create_app(HttpMirror(os.environ["MIRROR_URL"], os.environ["MIRROR_TOKEN"]), os.environ["HOOK_SECRET"])
