"""Examples that the help of each command shows."""

import click

EXAMPLES = {
    "alive": ["worker"],
    "audit list": ["--since yesterday --via cli", "--organization Acme --json"],
    "auto-join block": ["Acme ann@acme.example --reason 'left the company'"],
    "auto-join domains": ["--organization Acme", "--off"],
    "auto-join joins": ["--state failed"],
    "auto-join missing": ["--organization Acme"],
    "auto-join set": ["Acme --off --reason 'asked by their admin'", "Acme --role member --reason 'ticket 7'"],
    "auto-join unblock": ["Acme ann@acme.example --reason 'hired again'"],
    "catch-up": ["", "--since 2h --reason 'webhooks were refused'"],
    "clock": [""],
    "config": ["", "--json"],
    "demo": ["--keep"],
    "doctor": ["", "--json"],
    "endpoints delete": ["we_123 --reason 'replaced by a new secret'"],
    "endpoints list": [""],
    "events dismiss": ["event_123 --reason 'sent by mistake'"],
    "events failures": [""],
    "events list": ["--status failed", "--organization Acme --type user.updated --limit 10"],
    "events show": ["event_123"],
    "explain": ["ann@acme.example", "Acme", "event_123 --at yesterday"],
    "forget": ["ann@acme.example --reason 'ticket 7'"],
    "hooks dismiss": ["crm --change 123 --reason 'already known there'"],
    "hooks failed": ["", "crm --jsonl"],
    "hooks list": [""],
    "hooks replay": ["crm --reason 'their outage is over'"],
    "members": ["Acme", "org_123 --at 2026-01-31 --json", "--since today"],
    "migrate": ["", "--print-sql --from 0020 > upgrade.sql"],
    "notify test": ["", "--json"],
    "plan": ["", "--set ROLE_MAP=owner=admin --max-promotions 10"],
    "register": ["https://sync.example.com/webhooks/workos", "https://sync.example.com/webhooks/workos --rotate"],
    "replay": ["--failed --dry-run", "--organization Acme --since 3d --reason 'fixed ROLE_MAP'"],
    "resync": ["--dry-run", "--organization Acme", "--approve 4f1d2c3b5a69 --reason 'checked with Acme'"],
    "review": ["--format html > review.html", "--organization Acme --at 2026-01-31"],
    "runs cancel": ["4f1d2c3b5a69 --reason 'wrong selection'"],
    "runs list": ["--task resync --since 7d", "--status failed"],
    "runs show": ["4f1d2c3b5a69", "4f1d2c3b5a69 --json"],
    "sandbox": ["", "--seed seed.json --webhook http://localhost:8000/webhooks/workos"],
    "seats": ["", "--at 2026-01-31 --csv > seats.csv"],
    "send": ["user.updated", "user.updated --url https://sync.example.com"],
    "status": ["", "--watch"],
    "up": ["", "--port 8080"],
    "web": ["", "--port 8080"],
    "worker": ["", "--processes 4"],
    "workspaces": ["--name acme", "--domain acme.example", "--without-admin"],
}
"""Command → arguments of examples. A test parses them."""


def add_examples(command: click.Command, path: str) -> None:
    """Add its examples to the help of a command with this path, such as `events list`, or to those below it."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            add_examples(below, f"{path} {name}")
    elif found := EXAMPLES.get(path):
        lines = [f"  workos-sync {path} {arguments}".rstrip() for arguments in found]
        # Click wraps a paragraph unless it begins with \b.
        command.epilog = "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *lines])
