"""The search of the navigation."""

from flask import Blueprint, redirect, request, url_for
from werkzeug import Response

from worker.bootstrap import Services


def add(routes: Blueprint, services: Services) -> None:
    """Add the page to `routes`."""

    @routes.get("/search")
    def search() -> Response:
        return redirect(url_for("ops.explain_page", name=request.args.get("q", "").strip()))
