"""Commands accept a workspace by id, external id or name, and a person by id or address in any spelling."""

from collections.abc import Callable

from sqlalchemy import Engine

from tests.support import JSON, made
from tests.support.auto_join import apply_events
from tests.support.cli import report, run
from tests.support.mirror import ORG, USER


def workspace(type: str, id: str, name: str, external_id: str | None = None) -> JSON:
    return made(f"organization.{type}", id=id, name=name, external_id=external_id)


def test_names_of_workspaces_and_people(set_environment: Callable[..., None], db_url: str, engine: Engine) -> None:
    set_environment(DATABASE_URL=db_url)
    events = [
        workspace("created", ORG, "Acme Röckets", "customer-1"),
        made("user.created", email="Ada.Hopper@bücher.example"),
        made("organization_membership.created"),
        *(workspace("created", f"org_{n}", "Twin") for n in range(7)),
        workspace("created", "org_gone", "Gone", "former"),
        workspace("deleted", "org_gone", "Gone", "former"),
        workspace("created", "org_again", "Again", "gone"),
        made("user.created", id="user_gone", email="bob@acme.example"),
        made("user.deleted", id="user_gone", email="bob@acme.example"),
    ]
    apply_events(engine, events)
    found = {
        name: report("members", name)["organization_id"]
        for name in (ORG, "customer-1", "Acme Röckets", "ACME röckets", "org_gone", "former", "gone")
    }
    assert found == {
        **dict.fromkeys(list(found)[:4], ORG),
        "org_gone": "org_gone",
        "former": "org_gone",
        "gone": "org_again",
    }
    assert report("explain", "customer-1")["objects"][0]["id"] == ORG
    assert {row["organization_id"] for row in report("events", "list", "--organization", "acme röckets")} == {ORG}
    assert report("events", "list", "--organization", "org_unmirrored") == []

    twins = run("members", "twin", exit_code=2).stderr
    assert twins == (
        "workos-sync: twin is ambiguous; use one of these ids: "
        "org_0 (Twin), org_1 (Twin), org_2 (Twin), org_3 (Twin), org_4 (Twin), ...\n"
    )
    for command in ("members", "events list --organization", "audit list --organization", "review --organization"):
        unknown = run(*command.split(), "Acme Rock", exit_code=1).stderr
        assert unknown == (
            "workos-sync: the mirror has no workspace 'Acme Rock'; "
            "to find one, run: workos-sync workspaces --name TEXT\n"
        )

    blocked = run("auto-join", "block", "customer-1", "ada.hopper@xn--bcher-kva.example", "--reason", "x").stdout
    assert blocked == f"{USER} can no longer join {ORG} by domain\n"
    assert report("forget", "BOB@acme.example", "--yes", "--reason", "x")["user"] == "user_gone"
    assert (
        "no person 'nobody@x.example'"
        in run("forget", "nobody@x.example", "--yes", "--reason", "x", exit_code=1).stderr
    )
