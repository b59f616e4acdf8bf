"""A host of workos-sync in a few lines: who is signed in may enter their workspaces, and only those.

It shares no code with workos-sync: it reads the mirror over SQL (any language can) or over HTTP, and hears of changes
by a hook. Its own sign-in is left out: `POST /sign-in` believes whoever asks, as no real one may.
"""

import hashlib
import os
from collections import Counter
from typing import Any, Protocol

import idna
import requests
from flask import Flask, Response, abort, jsonify, request, session
from sqlalchemy import create_engine, text
from standardwebhooks import Webhook, WebhookVerificationError


class Mirror(Protocol):
    """What a host asks the mirror."""

    def workspaces_of(self, user_id: str) -> list[dict[str, Any]]:
        """The workspaces that a user may enter, with their role in each."""

    def auto_join_for(self, email: str) -> dict[str, Any] | None:
        """The workspace that someone with this verified address joins."""


def normal(email: str) -> tuple[str, str] | None:
    """An address as the mirror compares it, and its domain: lower case, IDNA, no trailing dot. None: it is none.

    IDNA as UTS 46 says, non-transitional. Python's own codec "idna" follows an older rule, by which straße.de is
    strasse.de: it would name the workspace of somebody else.
    """
    local, _, host = email.rpartition("@")
    try:
        domain = idna.encode(host.rstrip("."), uts46=True, transitional=False).decode().lower()
    except UnicodeError:
        return None
    return (f"{local.lower()}@{domain}", domain) if local and "." in domain else None


def hash_of(address: str) -> str:
    """An address, as `normal` returns it, as the mirror keeps it: it may no longer keep the address itself."""
    return hashlib.sha256(f"workos-sync:{address}".encode()).hexdigest()


class SqlMirror:
    """The mirror's views, in the database that workos-sync keeps. Give it a role that may only read them."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)

    def workspaces_of(self, user_id: str) -> list[dict[str, Any]]:
        """Return the workspaces that a user may enter."""
        query = (
            "SELECT organization_id, workspace_name, role FROM workspace_members WHERE user_id = :user_id ORDER BY 2"
        )
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(query), {"user_id": user_id}).mappings()]

    def auto_join_for(self, email: str) -> dict[str, Any] | None:
        """Return the workspace that a verified address joins; not one that its owner was removed from."""
        query = """
            SELECT d.organization_id, d.default_role FROM auto_join_domains AS d
            WHERE d.domain = :domain AND NOT EXISTS (
                SELECT 1 FROM auto_join_blocks AS b
                WHERE b.organization_id = d.organization_id AND b.email_hash = :hash)
        """
        found = normal(email)
        if found is None:
            return None
        address, domain = found
        with self._engine.connect() as connection:
            row = connection.execute(text(query), {"domain": domain, "hash": hash_of(address)}).mappings().one_or_none()
            return dict(row) if row else None


class HttpMirror:
    """The mirror's API, with a token of API_TOKENS."""

    def __init__(self, url: str, token: str) -> None:
        self._url = f"{url}/api/v1"
        self._http = requests.Session()
        self._http.headers["Authorization"] = f"Bearer {token}"

    def _get(self, path: str, **params: str) -> Any:
        answer = self._http.get(f"{self._url}/{path}", params=params, timeout=5)
        answer.raise_for_status()
        return answer.json()

    def _all(self, path: str, **params: str) -> list[dict[str, Any]]:
        """Return all items of a listing: `next` of a page is `after` of the following one, null at the end."""
        page = self._get(path, **params)
        items: list[dict[str, Any]] = page["items"]
        while page["next"] is not None:
            page = self._get(path, **params, after=page["next"])
            items += page["items"]
        return items

    def workspaces_of(self, user_id: str) -> list[dict[str, Any]]:
        """Return the workspaces that a user may enter."""
        told = ("organization_id", "workspace_name", "role")
        places = [{name: item[name] for name in told} for item in self._all("members", user_id=user_id)]
        return sorted(places, key=lambda place: str(place["workspace_name"]))

    def auto_join_for(self, email: str) -> dict[str, Any] | None:
        """Return the workspace that a verified address joins."""
        found: dict[str, Any] | None = self._get("auto-join", email=email)["auto_join"]
        return found


def create_app(mirror: Mirror, hook_secret: str) -> Flask:  # noqa: C901 - one file, to be read from top to bottom
    """Return the host."""
    app = Flask(__name__)
    app.secret_key = os.urandom(32)
    ended: Counter[tuple[str, str]] = Counter()  # a real host keeps it in its own database

    def times(user_id: str, organization_id: str) -> int:
        """Tell how often such sessions were ended: a person's, those in a workspace, a person's in a workspace."""
        return ended[user_id, ""] + ended["", organization_id] + ended[user_id, organization_id]

    def enter(user_id: str, organization_id: str) -> None:
        session.update(user_id=user_id, organization_id=organization_id, ended=times(user_id, organization_id))

    def places() -> dict[str, dict[str, Any]]:
        """Ask anew for every request: what was true at sign-in may not be now."""
        if "user_id" not in session or session["ended"] != times(session["user_id"], session["organization_id"]):
            abort(401)
        return {place["organization_id"]: place for place in mirror.workspaces_of(session["user_id"])}

    @app.post("/sign-in")
    def sign_in() -> Response:
        enter(request.form["user_id"], "")
        return jsonify(list(places().values()))

    @app.post("/switch/<organization_id>")
    def switch(organization_id: str) -> Response:
        """Enter another workspace."""
        place = places().get(organization_id) or abort(403)
        enter(session["user_id"], organization_id)
        return jsonify(place)

    @app.get("/keys")
    def keys() -> Response:
        """For admins of the workspace that was entered."""
        place = places().get(session["organization_id"]) or abort(403)
        if place["role"] != "admin":
            abort(403)
        return jsonify(organization_id=place["organization_id"], keys=["sk_1"])

    @app.post("/sign-up")
    def sign_up() -> Response:
        """After the address was verified, and never before. With AUTO_JOIN=provision the membership makes itself."""
        return jsonify(mirror.auto_join_for(request.form["email"]))

    @app.post("/hooks/workos-sync")
    def changed() -> tuple[str, int]:
        """Access may have ended: end the sessions of whom it concerns, if they may no longer enter.

        A hook is a hint that may come twice and late, so the mirror is asked how things stand now.
        """
        try:
            message = Webhook(hook_secret).verify(request.get_data(), dict(request.headers))
        except WebhookVerificationError:
            abort(401)
        data = message["data"]
        if data["kind"] == "membership":
            user_id, organization_id = data["after"]["user_id"], data["organization_id"]
            if all(place["organization_id"] != organization_id for place in mirror.workspaces_of(user_id)):
                ended[user_id, organization_id] += 1
        elif message["type"] == "user.deleted":
            ended[data["object_id"], ""] += 1
        elif message["type"] == "organization.deleted":
            ended["", data["object_id"]] += 1
        return "", 204

    return app


def main() -> Flask:
    """Return the host as its settings say: `flask --app app:main run`."""
    if url := os.environ.get("MIRROR_DATABASE_URL"):
        return create_app(SqlMirror(url), os.environ["HOOK_SECRET"])
    return create_app(HttpMirror(os.environ["MIRROR_URL"], os.environ["MIRROR_TOKEN"]), os.environ["HOOK_SECRET"])
