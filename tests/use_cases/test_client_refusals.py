"""Inputs that the client of WorkOS cannot use: ids, keys, addresses and answers that HTTP libraries choke on.

Each becomes an error of ours that names the cause, and nothing else stops.
"""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import Engine

from models.tables import Event, Read, RunStatus
from tests.support import JSON, SECRET, access, commands, differences, made, rows
from tests.support.bad_input import TEXTS
from tests.support.hooks import SECRET as HOOK_SECRET
from tests.support.resync import (
    CLIENT_ID,
    UNLIMITED,
    deliver,
    found,
    live,
    make_reads_due,
    resync,
    run_row,
    settings_of,
    small_life,
)
from worker.cli import main
from worker.decision.payload import MAX_ID_LENGTH, is_id
from worker.errors import WorkOSError, WorkosSyncError
from worker.kinds import KINDS
from worker.repair.reads import fetch, work_due
from worker.repair.resync.listings import Key
from worker.sandbox import Sandbox
from worker.workos_api.bucket import Buckets
from worker.workos_api.client import WorkOSClient, open_client

pytestmark = pytest.mark.long

FUZZING = settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
HOSTILE_IDS = [
    *("", ".", "..", "...", "/", "//", "a/b", "../users", "..%2f..", "%2e%2e", "%", "%00", "%zz", "?", "#", "a?b=c#d"),
    *("a b", " a", "a ", "\\..\\", ";", ":", "@", "a@b:80", "[::1]", "{}", "*", "~", "+", "&limit=1", "a,b", '"', "'"),
    *("a\nb", "a\r\nX-Injected: 1", "\t", "\0", "\x7f", "\x1b[31m", "\u202e", "\u2028", "é", "İ", "ß", "𐀀", "\ud800"),
    *(
        "a" * MAX_ID_LENGTH,
        "a" * (MAX_ID_LENGTH + 1),
        "%" * MAX_ID_LENGTH,
        "a" * 8_000,
        "a" * 70_000,
        "é" * 70_000,
        "\udcff",
    ),
]
REASONS = HOSTILE_IDS[::7]
"""Of the ids, those given as reasons, each of which makes a command do its work, and those tried with `--json`."""
FOR_SANDBOX = [id for id in HOSTILE_IDS if "{" not in id]
"""Its routes cannot hold a brace."""
FAILED_FOR_ITS_ID = re.compile(r"data\.\w+: is (missing|not an id)")
ids = (
    st.sampled_from(HOSTILE_IDS)
    | st.text(st.characters(), max_size=20)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=MAX_ID_LENGTH)
)
AWAY = b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Wire:
    """A server that answers every request with the bytes `answer`, and keeps the heads of the requests."""

    def __init__(self) -> None:
        self.answer = b""
        self.heads: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                head = b""
                while b"\r\n\r\n" not in head and (piece := connection.recv(65_536)):
                    head += piece
                self.heads.append(head)
                connection.sendall(self.answer)


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


@contextmanager
def client_to(wire: Wire, redis: Redis, key: str = "sk_test_wire", **given: Any) -> Iterator[WorkOSClient]:
    """A client that calls the wire once for each read, without waiting."""
    options: dict[str, Any] = {"base_url": wire.url, "timeout_seconds": 5, "max_tries": 1} | given
    client = open_client(key, CLIENT_ID, options.pop("base_url"), Buckets(redis, UNLIMITED), **options)
    try:
        yield client
    finally:
        client.close()


# Ids


CALLS: dict[str, tuple[int, int, Callable[[WorkOSClient, str], object]]] = {
    "a user": (3, 2, lambda workos, id: fetch(workos, KINDS["user"], id)),
    "an organization": (2, 1, lambda workos, id: fetch(workos, KINDS["organization"], id)),
    "a membership": (3, 2, lambda workos, id: fetch(workos, KINDS["membership"], id)),
    "a role": (5, 4, lambda workos, id: fetch(workos, KINDS["role"], f"org_1/{id}")),
    "roles": (4, 2, lambda workos, id: Key("organization_roles", id).fetch(workos, None)),
    "to deactivate": (4, 2, lambda workos, id: workos.deactivate_membership(id)),
    "to change an endpoint": (2, 1, lambda workos, id: workos.update_webhook_endpoint(id, ["user.created"])),
}


@pytest.mark.parametrize(("length", "place", "call"), CALLS.values(), ids=CALLS)
def test_an_id_is_one_segment_of_the_path_or_is_refused(
    wire: Wire, redis: Redis, length: int, place: int, call: Callable[[WorkOSClient, str], object]
) -> None:
    wire.answer = AWAY
    with client_to(wire, redis) as workos:

        @FUZZING
        @given(ids)
        def holds(id: str) -> None:
            wire.heads.clear()
            with pytest.raises(WorkosSyncError):
                call(workos, id)
            for head in wire.heads:
                line, *fields = head.decode().split("\r\n")
                segments = line.split(" ")[1].partition("?")[0].lstrip("/").split("/")
                assert len(segments) == length
                assert unquote(segments[place]) == id or not is_id(id)
                assert not [field for field in fields if field.startswith("X-Injected")]
            assert wire.heads or not is_id(id) or len(id) > MAX_ID_LENGTH, "an id that we accept can be asked for"

        holds()


@FUZZING
@given(ids)
def test_a_valid_id_is_short_and_has_no_slash_or_line_end(id: str) -> None:
    assert not is_id(id) or (len(id) <= MAX_ID_LENGTH and id.isascii() and not set(id) & set("/\r\n\0"))


def test_a_cursor_is_sent_as_it_came_or_is_refused(wire: Wire, redis: Redis) -> None:
    with client_to(wire, redis) as workos:

        @FUZZING
        @given(ids)
        def holds(cursor: str) -> None:
            body = json.dumps({"object": "list", "data": [], "list_metadata": {"after": cursor}}).encode()
            wire.answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body
            try:
                after = Key("users", "").fetch(workos, None).after
            except WorkosSyncError:
                return
            assert after == (cursor or None)
            wire.heads.clear()
            with suppress(WorkosSyncError):  # the same cursor again is no usable one
                Key("users", "").fetch(workos, after)
            [head] = wire.heads
            assert parse_qs(urlsplit(head.split(b" ")[1]).query).get(b"after", [b""]) == [cursor.encode()]

        holds()


def test_an_answer_that_breaks_off_is_requested_again(wire: Wire, redis: Redis) -> None:
    """Its head said 200."""
    wire.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{"
    with client_to(wire, redis, max_tries=2) as workos, pytest.raises(WorkOSError) as raised:
        Key("users", "").fetch(workos, None)
    assert len(wire.heads) == 2 and raised.value.status is None


EVENT_FIELDS = [
    *(("user.created", "id"), ("user.deleted", "id"), ("organization.updated", "id"), ("connection.activated", "id")),
    *(("organization_membership.created", name) for name in ("id", "user_id", "organization_id")),
    *(("organization_role.created", name) for name in ("slug", "organization_id")),
]


def test_events_with_hostile_ids_stop_nothing_else(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    """Both those that are no ids, and those that are but name nothing at WorkOS."""
    small_life(sandbox.world, 1, 2)
    hostile = [made(type, **JSON({name: id})) for type, name in EVENT_FIELDS for id in FOR_SANDBOX]
    deliver(one_engine, [*hostile, *sandbox.world.events])
    for row in rows(one_engine, Event):
        assert row["status"] == "done" or FAILED_FOR_ITS_ID.match(row["error"]), row["error"]
    make_reads_due(one_engine)
    while rows(one_engine, Read):
        assert work_due(one_engine, workos, lambda: False), rows(one_engine, Read)
        make_reads_due(one_engine)
    run_id = resync(one_engine, workos)
    assert run_row(one_engine, run_id)["status"] == RunStatus.DONE
    [organization] = sandbox.world.organizations
    members = {(workspace, user) for workspace, user, _ in access(one_engine)}
    assert {(organization, user) for user in sandbox.world.users} <= members


def test_listings_with_hostile_ids_stop_nothing_else(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resync reports the objects whose ids are none, and mirrors all others."""
    world, no_ids = sandbox.world, [id for id in FOR_SANDBOX if not is_id(id)]
    for id in no_ids:
        with monkeypatch.context() as patched:
            patched.setattr(world, "new_id", lambda _, id=id: id)
            world.create_user(f"{no_ids.index(id)}@people.example")
            world.create_organization(f"Company {no_ids.index(id)}")
    small_life(world, 2, 2)
    reported = found(one_engine, resync(one_engine, workos))
    assert sum(finding == "invalid" for finding, _ in reported.values()) == 2 * len(no_ids)
    assert live(one_engine)["user"] == set(world.users) - set(no_ids)
    assert live(one_engine)["organization"] == set(world.organizations) - set(no_ids)
    assert len(access(one_engine)) == 4


PARENTS = ("org", "user")
ODD_BUT_VALID = [id for id in FOR_SANDBOX if is_id(id)]


def test_objects_with_odd_but_valid_ids_are_mirrored_as_any_other(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By events, by a resync's listings, and by confirmed reads."""
    world, new_id = sandbox.world, sandbox.world.new_id
    for place, odd in enumerate(ODD_BUT_VALID):
        monkeypatch.setattr(world, "new_id", lambda prefix, odd=odd: odd if prefix in PARENTS else new_id(prefix))
        user = world.create_user(f"person{place}@people.example")
        world.create_membership(world.create_organization(f"Company {place}")["id"], user["id"])
    deliver(one_engine, [event for event in world.events if event["event"] == "organization_membership.created"])
    make_reads_due(one_engine)
    while rows(one_engine, Read):  # the parents
        assert work_due(one_engine, workos, lambda: False)
        make_reads_due(one_engine)
    resync(one_engine, workos)
    assert differences(one_engine, world.truth()) == []
    assert live(one_engine)["user"] == live(one_engine)["organization"] == set(ODD_BUT_VALID)
    assert len(access(one_engine)) == len(ODD_BUT_VALID)


# Answers


FIELDS = {
    "X-Request-ID": [b"", b"\xff\xfe", b"\x1b[31m", b"a" * 60_000, b"req_1\r\n folded", b"\0", b"\xf0\x9f\x98\x80"],
    "Date": [b"", b"yesterday", b"Mon, 01 Jan 0001 00:00:00 -0000", b"Fri, 31 Dec 9999 23:59:59 -2359", b"\xff", b"0"],
    "Retry-After": [b"-1", b"1e999", b"9" * 400, b"\xd9\xa3", b"Mon, 99 Foo 2999 00:00:00 GMT", b"NaN", b"\xff"],
    "Content-Type": [b"", b"text/html; charset=base64", b"application/json; charset=\xff", b"x" * 9_000, b"\0"],
    "Content-Encoding": [b"gzip", b"deflate", b"br", b"zstd", b"gzip, gzip", b"nonsense"],
    "Content-Length": [b"-1", b"9" * 30, b"5, 6", b"0x5", b"\xff", b"1"],
    "Transfer-Encoding": [b"chunked", b"gzip", b"chunked, chunked", b"\x0bchunked"],
    "Location": [b"", b"/elsewhere", b"http://[::1", b"\xff", b"javascript:alert(1)", b"//", b"a" * 60_000],
    "Set-Cookie": [b"a=b; expires=never", b"\xff=\xff", b"=" * 5_000],
    "Connection": [b"upgrade", b"\xff"],
    "Link": [b"<" * 5_000],
}
STATUS_LINES = [
    *(b"HTTP/1.1 %d X" % status for status in (200, 201, 204, 302, 400, 401, 403, 404, 422, 429, 500, 503, 999, 99)),
    *(b"HTTP/1.1 100 Continue", b"HTTP/1.1 101 Switching", b"HTTP/2 200", b"HTTP/1.1 200", b"ICY 200 OK", b"", b"\xff"),
    *(b"HTTP/1.1 2000 OK", b"HTTP/1.1 -1 OK", b"HTTP/1.1 200 \xff\xfe", b"SSH-2.0-OpenSSH", b"\x16\x03\x01"),
]
BODIES = [
    *(
        b"",
        b"{}",
        b"[]",
        b"null",
        b"0",
        b'"text"',
        b"<!doctype html>",
        b"\xff\xfe{",
        b'{"id": "user_1"',
        b"[" * 100_000,
    ),
    *(b'{"object":"user","id":"user_2"}', b'{"data":{}}', b'{"message":null,"code":[],"errors":3}', b"\x1f\x8b\x08"),
    *(b'["message"]', b'{"message": "\\ud800"}', b"9" * 5_000, b"NaN", b'{"error":{"a":1},"code":{}}', b"5\r\nabc"),
]
fields = st.sampled_from([(name, value) for name, values in FIELDS.items() for value in values])
answers = st.builds(
    lambda line, given, body: b"\r\n".join(
        [line, *(name.encode() + b": " + value for name, value in given), b"", body]
    ),
    st.sampled_from(STATUS_LINES),
    st.lists(fields, max_size=3),
    st.sampled_from(BODIES),
) | st.binary(max_size=200)
READS: dict[str, Callable[[WorkOSClient], object]] = {
    "object": lambda workos: fetch(workos, KINDS["user"], "user_1"),
    "listing": lambda workos: Key("users", "").fetch(workos, None),
    "write": lambda workos: workos.create_membership("org_1", "user_1", "member", float("inf")),
    "time": lambda workos: workos.now(),
}


@pytest.mark.parametrize("call", READS.values(), ids=READS)
def test_an_answer_that_the_client_cannot_use_is_an_error_of_ours(
    wire: Wire, redis: Redis, call: Callable[[WorkOSClient], object]
) -> None:
    with client_to(wire, redis) as workos:

        @FUZZING
        @given(answers)
        def holds(answer: bytes) -> None:
            wire.answer = answer
            with suppress(WorkosSyncError):
                call(workos)

        holds()


# Settings


NOT_IN_AN_ENVIRONMENT = re.compile("[\0\ud800-\udc7f]")
KEYS = [text for text in TEXTS if text and not NOT_IN_AN_ENVIRONMENT.search(text)]
KEYS += ["sk_test\r\nX-Injected: 1", "sk_test\n", " sk_test ", "ключ", "sk_" + "x" * 70_000, "\udcff"]
USABLE = re.compile("[!-~]+")
"""A key or client id that can be sent, without the space around it, which is removed."""
SENT, REFUSED = (
    [(name, key) for name in ("WORKOS_API_KEY", "WORKOS_CLIENT_ID") for key in KEYS if usable(key)]
    for usable in (lambda key: USABLE.fullmatch(key.strip()), lambda key: not USABLE.fullmatch(key.strip()))
)
REFUSED_ADDRESSES = [
    *("http://[::1", "http://127.0.0.1:99999", "http://127.0.0.1:1x", "://", "http://", "http:///", "//host", "host"),
    *("http://exa mple", "http://☃.example", "http://\udcff", "ftp://h", "é", "http://127.0.0.1:1/#x?y"),
    *("unix:///tmp/x", "http://" + "a" * 300 + ".example", "http://xn--", "http://0x7f.1:1"),
    "http://127.0.0.1:1\nX-Injected: 1",
]
UNANSWERED_ADDRESSES = [
    *("http://user:p@ss@127.0.0.1:1", "http://127.0.0.1:1/..", "http://127.0.0.1:1/" + "a" * 70_000, "\t"),
]
CALLING = ("resync --dry-run", "catch-up", "register https://sync.acme.example/webhooks/workos")
"""Commands that call WorkOS."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def check(result: Result, *context: object) -> None:
    """A command ended with a code of its own and a message, not with an exception."""
    assert result.exit_code in {0, 1, 2}, (context, result.output)
    assert isinstance(result.exception, SystemExit | None), (context, result.exception)
    assert "Traceback" not in result.output, context
    assert result.exit_code == 0 or result.output.strip(), context


@pytest.fixture
def _configured(
    set_environment: Callable[..., None], make_database: Callable[[str], str], sandbox: Sandbox, restored_logging: None
) -> None:
    set_environment(
        DATABASE_URL=make_database("sqlite"),
        WORKOS_WEBHOOK_SECRETS=SECRET,
        WORKOS_RATE_SHARE="1",
        HOOKS="sessions=https://host/hook",
        HOOK_SECRETS=f"sessions:{HOOK_SECRET}",
        **settings_of(sandbox),
    )


def shortened(value: str) -> str:
    return ascii(value[:20])


@pytest.mark.usefixtures("_configured")
@pytest.mark.parametrize(
    ("name", "value"), [*REFUSED, *(("WORKOS_BASE_URL", value) for value in REFUSED_ADDRESSES)], ids=shortened
)
def test_a_setting_that_the_client_cannot_use_is_refused_and_named(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("WORKOS_BASE_URL", wire.url)
    monkeypatch.setenv(name, value)
    for line in CALLING:
        ended = run(*line.split())
        check(ended, line)
        assert ended.exit_code == 2 and name in ended.stderr, (line, ended.output)
    ended = run("doctor", "--json")
    check(ended)
    levels = {row["name"]: row["level"] for row in json.loads(ended.stdout)}
    assert levels[name] == "failure", levels
    assert wire.heads == []


@pytest.mark.usefixtures("_configured")
@pytest.mark.parametrize(("name", "value"), SENT[::2], ids=shortened)
def test_a_key_or_client_id_of_any_printable_characters_is_sent(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    wire.answer = AWAY
    monkeypatch.setenv("WORKOS_BASE_URL", wire.url)
    monkeypatch.setenv(name, value)
    for line in (*CALLING, "doctor"):
        wire.heads.clear()
        ended = run(*line.split())
        check(ended, line)
        assert ended.exit_code == 1 and wire.heads, (line, ended.output)
        for head in wire.heads:
            fields = head.decode().split("\r\n")
            assert not [field for field in fields if field.lower().startswith(("x-injected", "level"))], line
            assert name != "WORKOS_API_KEY" or f"Authorization: Bearer {value.strip()}" in fields, fields


@pytest.mark.usefixtures("_configured")
@pytest.mark.parametrize("value", UNANSWERED_ADDRESSES, ids=shortened)
def test_an_address_at_which_nobody_answers_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WORKOS_BASE_URL", value)
    for line in (*CALLING, "doctor"):
        ended = run(*line.split())
        check(ended, line)
        assert ended.exit_code == 1 and "p@ss" not in ended.output, (line, ended.output)


# Commands


EXTRA = {"auto-join set": ["--off"]}
LEFT_OUT = {"web", "worker", "clock", "demo", "sandbox"}
"""They run until they are stopped, and take no ids."""


def lines(path: str, command: click.Command, id: str) -> Iterator[list[str]]:
    """The command with `id` wherever it requires text, and a second command for each option that takes text."""
    texts = [each for each in command.params if each.type is click.STRING]
    options = [each for each in texts if isinstance(each, click.Option)]
    required = [word for option in options if option.required for word in (option.opts[0], id)]
    arguments = [id for each in command.params if isinstance(each, click.Argument)]
    words = [*path.split(), *EXTRA.get(path, []), *required, *arguments]
    if required or arguments:
        yield words
    for option in options:
        if not option.required and (option.name != "reason" or id in REASONS):
            yield [*words, option.opts[0], id]


TAKING_IDS = {
    " ".join(path): command
    for path, command in commands(main)
    if not isinstance(command, click.Group) and " ".join(path) not in LEFT_OUT
    if any(each.type is click.STRING for each in command.params)
}


@pytest.mark.usefixtures("_configured")
@pytest.mark.parametrize("path", TAKING_IDS)
def test_a_command_with_a_hostile_id_ends_with_a_message(path: str) -> None:
    """Each command is tried with a third of the ids, and each id with a third of the commands."""
    has_json = any(each.name == "as_json" for each in TAKING_IDS[path].params)
    for id in HOSTILE_IDS[list(TAKING_IDS).index(path) % 3 :: 3]:
        for words in lines(path, TAKING_IDS[path], id):
            for line in (words, [*words, "--json"]) if has_json and id in REASONS else (words,):
                check(run(*line), [ascii(word[:20]) for word in line])
