"""Sign in to the operators' pages."""

import re

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

TOKEN = "ann-signs-in-with-this-token"


def form_token(page: TestResponse) -> str:
    """Return the token that the forms of a page must send."""
    found = re.search(r'name="csrf_token" value="([^"]+)"', page.get_data(as_text=True))
    assert found
    return found[1]


def sign_in(browser: FlaskClient, token: str = TOKEN, **form: str) -> TestResponse:
    """Send a token by the form; returns the answer."""
    page = browser.get("/ops/sign-in")
    return browser.post("/ops/sign-in", data={"token": token, "csrf_token": form_token(page), **form})
