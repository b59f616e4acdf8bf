"""docs/reference.md names every setting, command, option, route, parameter and column, and nothing else."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from flask import Flask

from models.tables import Base
from models.views import metadata as views
from webhooks.app import create_app
from worker.bootstrap import build_services
from worker.cli import main
from worker.settings import Settings

TEXT = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()


def section(name: str) -> str:
    """The text of a second-level section."""
    return TEXT.split(f"\n## {name}\n")[1].split("\n## ")[0]


def table_rows(text: str) -> list[list[str]]:
    """The cells of all rows that begin with code; `\\|` is a bar inside a cell."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip().replace("\\|", "|") for cell in row] for row in rows]


def shown(default: Any) -> str:
    """A default as the page writes it."""
    if isinstance(default, dict):
        default = ",".join(f"{name}={value}" for name, value in sorted(default.items()))
    if default in (None, (), ""):
        return "none"
    text = str(default).lower() if isinstance(default, bool | float) else str(default)
    return f"`{text.removesuffix('.0') if isinstance(default, float) else text}`"


def test_settings() -> None:
    documented = [(name.strip("`"), default) for name, default, _ in table_rows(section("Settings"))]
    defined = [(name.upper(), shown(field.default)) for name, field in Settings.model_fields.items()]
    assert sorted(documented) == sorted(defined)


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below `group` that does something itself, with its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        words = f"{path} {name}"
        if isinstance(command, click.Group):
            yield from commands(command, words)
        else:
            yield words, command


def usage(words: str, command: click.Command) -> str:
    """How a command is called."""
    parts = [words]
    context = click.Context(command)
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        for flag in (*parameter.opts, *parameter.secondary_opts):
            kind = "CHOICE" if isinstance(parameter.type, click.Choice) else parameter.type.name.split()[0].upper()
            value = "" if parameter.is_flag else f" {parameter.metavar or kind}"
            parts.append(f"{flag}{value}" if parameter.required else f"[{flag}{value}]")
    parts += [p.make_metavar(context) for p in command.params if isinstance(p, click.Argument)]
    return " ".join(parts)


def test_commands() -> None:
    documented = [row[0].strip("`") for row in table_rows(section("Commands"))]
    assert sorted(documented) == sorted(usage(words, command) for words, command in commands(main, "workos-sync"))


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """The whole application: pages and API are on."""
    settings = Settings(
        _env_file=None,
        database_url=f"sqlite:///{tmp_path}/mirror.db",
        workos_webhook_secrets="secret-of-16-chars",
        ops_tokens="ann:token-1-of-16-characters",
        api_tokens="token-2-of-16-characters",
    )
    parts = build_services(settings, "redis://localhost:1/0", endpoint=True)
    yield create_app(parts)
    parts.close()


def test_routes(app: Flask) -> None:
    documented = [row[0].strip("`") for row in table_rows(section("HTTP")) if row[0].startswith(("`GET ", "`POST "))]
    defined = [
        f"{method} {re.sub(r'<(path|string|id):', '<', rule.rule)}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) & {"GET", "POST", "PUT", "PATCH", "DELETE"}
        if rule.endpoint != "ops.static"
    ]
    assert sorted(documented) == sorted(defined)


def test_query_parameters_of_the_api(app: Flask) -> None:
    documented = {
        row[0].strip("`").removeprefix("GET "): re.findall(r"`(\w+)`", row[1])
        for row in table_rows(section("HTTP"))
        if row[0].startswith("`GET /api/v1/") and not row[0].endswith("openapi.json`")
    }
    described = app.test_client().get("/api/v1/openapi.json").get_json()["paths"]
    defined = {
        re.sub(r"\{([^}]*:)?(\w+)\}", r"<\2>", path): [
            parameter["name"] for parameter in methods["get"].get("parameters", []) if parameter["in"] == "query"
        ]
        for path, methods in described.items()
        if path.startswith("/api/v1/") and "get" in methods and not path.endswith("openapi.json")
    }
    assert {path: sorted(names) for path, names in documented.items()} == {
        path: sorted(names) for path, names in defined.items()
    }


def test_views() -> None:
    documented = {
        name: [row[0].strip("`") for row in table_rows(text)]
        for name, text in re.findall(r"^### `(\w+)`\n(.*?)(?=^### |\Z)", section("Views"), re.MULTILINE | re.DOTALL)
    }
    relations = [*views.tables.values(), Base.metadata.tables["changes"]]
    assert documented == {relation.name: [column.name for column in relation.columns] for relation in relations}
