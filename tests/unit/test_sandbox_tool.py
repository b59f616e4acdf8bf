"""`workos-sync sandbox` as a tool for products: seed files, control endpoints, what it prints and refuses."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.shell import files_of
from tests.support.stack.machine import JSON, ROOT, call
from tests.support.stack.processes import StackError
from worker.cli import main
from worker.sandbox import Sandbox
from worker.sandbox.seed import plant
from worker.sandbox.world import OPERATIONS

PAGE = (ROOT / "docs" / "development.md").read_text()
COMMAND = [sys.executable, "-m", "worker.cli", "sandbox", "--port", "0"]


@pytest.fixture(scope="module")
def running() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    (path := tmp_path / "seed.json").write_text(files_of(PAGE)["seed.json"])
    return path


# Seed files


def test_a_seed_file_describes_what_was_there_before(tmp_path: Path, seed: Path) -> None:
    sandbox = Sandbox()
    plant(sandbox, seed)
    truth = sandbox.world.truth()
    [acme] = truth["organizations"]
    assert (acme["name"], acme["external_id"]) == ("Acme", "customer-1")
    assert [(each["domain"], each["state"]) for each in acme["domains"]] == [("acme.example", "verified")]
    members = [(m["user"]["email"], m["role"]["slug"], m["status"]) for m in truth["memberships"]]
    assert members == [("ann@acme.example", "admin", "active"), ("bob@acme.example", "member", "active")]
    assert [invitation["email"] for invitation in truth["invitations"]] == ["cleo@acme.example"]
    assert sandbox.world.events == []

    member = {"email": "ann@acme.example", "role": "own", "status": "inactive"}
    pending = {"domain": "b.example", "state": "pending"}
    more: JSON = {
        "knobs": {"loss": 0.5},
        "roles": ["billing"],
        "users": [{"email": "ann@acme.example", "first_name": "Ann", "email_verified": False, "external_id": "u1"}],
        "organizations": [{"name": "B", "metadata": {"plan": "pro"}, "roles": ["own"]}],
    }
    more["organizations"][0] |= {"domains": [pending], "members": [member]}
    seed.write_text(json.dumps(more))
    sandbox = Sandbox()
    plant(sandbox, seed)
    truth = sandbox.world.truth()
    [ann], [b], [membership] = truth["users"], truth["organizations"], truth["memberships"]
    assert (ann["first_name"], ann["email_verified"], ann["external_id"]) == ("Ann", False, "u1")
    assert (b["metadata"], b["domains"][0]["state"]) == ({"plan": "pro"}, "pending")
    assert (membership["role"]["slug"], membership["status"]) == ("own", "inactive")
    assert {role["slug"] for role in truth["roles"]} == {"admin", "member", "billing", "own"}
    assert sandbox.knobs.loss == 0.5


WRONG_SEEDS = {
    "{": "Invalid JSON",
    "[]": "should be an object",
    '{"organisations": []}': "organisations: Extra inputs are not permitted",
    '{"organizations": [{}]}': "organizations.0.name: Field required",
    '{"users": ["ann"]}': "users.0.email",
    '{"users": ["a@b.example", "a@b.example"]}': "users.1: This email is not available",
    '{"organizations": [{"name": "A", "domains": [{"domain": "a.example", "state": "odd"}]}]}': "domains.0.state",
    '{"organizations": [{"name": "A", "members": [{"email": "a@b.example", "role": "boss"}]}]}': "members.0: .*boss",
    '{"knobs": {"loss": 2}}': "knobs: loss: ",
    '{"knobs": {"lost": 1}}': "unknown knobs: lost; there are .*loss",
}


@pytest.mark.parametrize("content", WRONG_SEEDS)
def test_a_wrong_seed_file_is_one_line_with_the_place(seed: Path, content: str) -> None:
    seed.write_text(content)
    refused = CliRunner().invoke(main, ["sandbox", "--port", "0", "--seed", str(seed)])
    assert refused.exit_code == 2
    assert re.fullmatch(f"workos-sync: {re.escape(str(seed))}: .*{WRONG_SEEDS[content]}.*\n", refused.stderr)


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "/nowhere.json"], r"workos-sync: /nowhere\.json: No such file or directory\n"),
        (["--bind", "192.0.2.1"], r"workos-sync: cannot listen at 192\.0\.2\.1, port 0: .*; choose --bind or --port\n"),
        (
            ["--webhook", "localhost:8000"],
            r"workos-sync: localhost:8000 is no URL: write for example http://localhost:\S+\n",
        ),
        (["--webhook", "http://localhost:port/"], r"workos-sync: http://localhost:port/ is no URL: .*\n"),
        (["--secret", "whsec_1"], r"(?s).*--secret signs webhooks.*--webhook URL\n"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], message: str) -> None:
    refused = CliRunner().invoke(main, ["sandbox", "--port", "0", *arguments])
    assert refused.exit_code == 2 and re.fullmatch(message, refused.stderr), refused.stderr


WITHOUT_THE_EXTRA = """
import sys
sys.modules["aiohttp"] = None
from worker.cli import main
try:
    main(["sandbox"])
except SystemExit as ended:
    print(ended.code)
try:
    import worker.sandbox.pytest_plugin
except ImportError as error:
    print(error)
"""


def test_without_the_extra_the_remedy_is_one_line() -> None:
    command = [sys.executable, "-c", WITHOUT_THE_EXTRA]
    refused = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    remedy = "the sandbox needs its extra: run pip install 'workos-sync[sandbox]'\n"
    assert (refused.stdout, refused.stderr) == (f"2\n{remedy}", f"workos-sync: {remedy}")


def test_no_key_of_production_is_used() -> None:
    with pytest.raises(ValueError, match="begins with sk_test_"):
        Sandbox(api_key="sk_live_1234")
    with pytest.raises(ValueError, match="begins with sk_test_"):
        Sandbox().add_environment("sk_live_1234")


# The control endpoints


def requests_of_the_page() -> list[tuple[str, str, JSON | None]]:
    """Method, path and body of each example."""
    rows = re.findall(r"^\| `(GET|POST|PUT|DELETE) (/\S+?)(?: (\{.*\}))?` \|", PAGE, re.MULTILINE)
    return [(method, path, json.loads(body) if body else None) for method, path, body in rows]


def test_every_control_endpoint_is_on_the_page_and_every_example_works() -> None:
    examples = requests_of_the_page()
    with Sandbox() as sandbox:
        sandbox.world.create_organization("Acme")
        [event] = sandbox.world.events
        for method, path, body in sorted(examples, key=lambda each: each[1] == "/endpoints"):  # to which none is sent
            shown = {"event_id": event["id"]} if path == "/send-again" else body
            call(method, f"{sandbox.base_url}/sandbox{path}", shown)
        call("DELETE", f"{sandbox.base_url}/sandbox/faults")
        assert len(sandbox.world.organizations) >= 12
    source = (ROOT / "worker" / "sandbox" / "control.py").read_text()
    served = set(re.findall(r'\("(\w+)", "([\w-]+)"\)', source))
    assert {(method, path.removeprefix("/")) for method, path, _ in examples} == served


def test_the_page_names_every_operation() -> None:
    listed = PAGE.split("An `operation` is one of the following")[1].split("\n## ")[0]
    assert set(re.findall(r"`([a-z]+_[a-z]+)`", listed)) == OPERATIONS


REFUSED: dict[str, tuple[str, str, Any, str]] = {
    "no object": ("POST", "play", [1], "must be a JSON object"),
    "no field": ("POST", "play", {}, "events: Missing required"),
    "an unknown field": ("POST", "play", {"events": 1, "evnts": 2}, "evnts: Unexpected"),
    "a knob that is no share": ("PUT", "knobs", {"loss": "much"}, "loss: Input should be a valid number"),
    "a knob out of range": ("PUT", "knobs", {"delay": [-1, 2]}, r"delay\.0: "),
    "an unknown knob": ("PUT", "knobs", {"lost": 1}, "unknown knobs: lost"),
    "a hook as a knob": ("PUT", "knobs", {"lose": 1}, "unknown knobs: lose"),
    "an unknown fault": ("POST", "faults", {"kind": "odd"}, "there are fail, "),
    "a fault with a wrong field": ("POST", "faults", {"kind": "fail", "status": "x"}, r"fail\.status: "),
    "no regular expression": ("POST", "faults", {"kind": "fail", "path": "("}, "regular expression"),
    "an endpoint without a scheme": ("POST", "endpoints", {"url": "localhost:8000"}, "localhost:8000 is no URL: write"),
    "an unknown request": ("POST", "operation", {}, "no POST /sandbox/operation; there are .*POST /sandbox/operations"),
    "an unknown method": ("GET", "operations", None, "no GET /sandbox/operations; there are "),
    "an unknown operation": ("POST", "operations", {"operation": "truth"}, "there are accept_invitation"),
    "a wrong argument": ("POST", "operations", {"operation": "delete_user", "id": "u"}, "user_id: Missing"),
    "an unknown property": (
        *("POST", "operations"),
        {"operation": "update_user", "user_id": "USER", "emial": "x"},
        "property emial should not exist",
    ),
    "a number for an address": ("POST", "operations", {"operation": "update_user", "user_id": "USER", "email": 5}, "."),
    "an unknown event": ("POST", "send-again", {"event_id": "event_1"}, "Event not found"),
    "data that is no object": ("POST", "events", {"event": "user.created", "data": 1}, "data: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_a_reason(running: Sandbox, case: str) -> None:
    method, path, body, message = REFUSED[case]
    if isinstance(body, dict) and body.get("user_id") == "USER":
        user = running.world.user_by_email("a@b.example") or running.world.create_user("a@b.example")
        body = body | {"user_id": user["id"]}
    before, knobs = running.world.truth(), running.knobs.as_json()
    with pytest.raises(StackError, match=rf'answered 4\d\d: {{"message": ".*{message}'):
        call(method, f"{running.base_url}/sandbox/{path}", body)
    assert (running.world.truth(), running.knobs.as_json()) == (before, knobs)


# What it prints


def test_it_says_on_a_terminal_what_it_is_and_what_to_do_next(seed: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*COMMAND, "--seed", str(seed), "--webhook", "http://localhost:8000/webhooks/workos"]
    command += ["--secret", "a-secret-for-local-use"]
    with subprocess.Popen(command, stdout=theirs, cwd=ROOT) as child:
        os.close(theirs)
        printed = b""
        while b"Ctrl-C" not in printed:
            printed += os.read(ours, 10_000)
        child.terminate()
        assert child.wait(30) == 0
    os.close(ours)
    text = printed.decode().replace("\r\n", "\n")
    url = re.search(r"^  API: (http://127\.0\.0\.1:\d+)$", text, re.MULTILINE)
    assert url is not None
    assert text.startswith("workos-sync sandbox: an offline WorkOS with invented data")
    assert "  Contains: 1 organization, 2 users, 2 memberships\n" in text
    assert "  Webhooks: http://localhost:8000/webhooks/workos\n" in text
    assert max(map(len, text.splitlines())) <= 80
    printed_words = " ".join(text.split())
    assert "run workos-sync migrate, then workos-sync web, worker and clock WORKOS_" in printed_words
    assert "When it stops, it loses all objects" in printed_words
    assert "same key, client id and secrets, and new ids" in printed_words
    settings = f"  WORKOS_BASE_URL={url[1]}\n  WORKOS_API_KEY=sk_test_sandbox\n  WORKOS_CLIENT_ID=client_sandbox\n"
    assert settings + "  WORKOS_WEBHOOK_SECRETS=a-secret-for-local-use\n" in text
