"""Help, output and error messages of the commands contain no secret."""

from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import make_url

from tests.support import commands
from worker.cli import main
from worker.sandbox import Sandbox

PASSWORD = "unheard-of-password"
SECRETS = {
    "WORKOS_API_KEY": "sk_unheard_of",
    "WORKOS_WEBHOOK_SECRETS": "whsec_unheard_of,whsec_unheard_before",
    "OPS_TOKENS": "ann:unheard-of-token-of-ann",
    "API_TOKENS": "reports:unheard-of-token-of-reports",
    "WEBHOOK_PATH_TOKEN": "unheard-of-path-token",
    "HOOKS": "host=http://127.0.0.1:9/hook",
    "HOOK_SECRETS": "host:whsec_dW5oZWFyZC1vZi11bmhlYXJkLW9mLXVuaGVhcmQ=",
    "NOTIFY": "json://ann:unheard-of@127.0.0.1:9/unheard-of,http://127.0.0.1:9/unheard-of",
    "NOTIFY_SECRET": "whsec_dW5oZWFyZC1vZi11bmhlYXJkLW9mLXVuaGVhcmQ=",
}
WORDS = ("unheard", "dW5oZWFyZC")


def shows(command: click.Command) -> bool:
    """Whether a command prints a report and has no required argument."""
    names = {parameter.name for parameter in command.params}
    return bool(names & {"as_json", "form"}) and not any(parameter.required for parameter in command.params)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert [word for word in WORDS if word in result.output] == [], arguments
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
    return result


@pytest.mark.long
@pytest.mark.usefixtures("restored_logging")
def test_help_and_output_contain_no_secret(
    make_database: Callable[[str], str], redis_url: str, set_environment: Callable[..., None], sandbox: Sandbox
) -> None:
    url = make_url(make_database("postgresql")).set(password=PASSWORD).render_as_string(hide_password=False)
    set_environment(DATABASE_URL=url, REDIS_URL=redis_url, WORKOS_BASE_URL=sandbox.base_url, **SECRETS)
    shown = 0
    for path, command in commands(main):
        assert run(*path, "--help").exit_code == 0
        if shows(command):
            for options in ([], ["--json"]):
                assert run(*path, *options).output.strip(), path
                shown += 1
    assert shown > 20


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize(
    "settings",
    [
        {"DATABASE_URL": f"postgresql://ann:{PASSWORD}@127.0.0.1:9/none"},
        {"DATABASE_URL": f"postgresql://ann:{PASSWORD}@127.0.0.1:{PASSWORD}/none"},
        {"REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:9/0"},
        {"REDIS_URL": f"rodis://:{PASSWORD}@127.0.0.1/0"},
        {"OPS_TOKENS": "unheard-of-token", "API_TOKENS": "unheard:"},
        {"HOOK_SECRETS": "other:unheard-of"},
        {"NOTIFY": "unheard-of,slack:///unheard", "NOTIFY_SECRET": "unheard-of"},
        {"WORKOS_API_KEY": "unheard of\n"},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.parametrize("command", [["status"], ["doctor", "--json"], ["resync"]])
def test_error_messages_contain_no_secret(
    make_database: Callable[[str], str],
    redis_url: str,
    set_environment: Callable[..., None],
    settings: dict[str, str],
    command: list[str],
) -> None:
    set_environment(**{"DATABASE_URL": make_database("sqlite"), "REDIS_URL": redis_url, **SECRETS, **settings})
    assert run(*command).exit_code != 0
