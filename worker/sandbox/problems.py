"""Describes in one line what is wrong with JSON input."""

from pydantic import ValidationError


def problems(error: ValidationError, *where: str) -> str:
    """Return each problem with its place below `where`, such as `organizations.0.name: Field required`."""
    found = ((".".join(map(str, (*where, *each["loc"]))), each["msg"]) for each in error.errors())
    return "; ".join(f"{place}: {message}" if place else message for place, message in found)
