"""Seed files: the initial contents of a sandbox, as JSON. See docs/development.md, Seed files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from worker.sandbox.problems import problems
from worker.sandbox.service import Service
from worker.sandbox.state import JSON, WorldError
from worker.sandbox.world import World

Email = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")]
Name = Annotated[str, Field(min_length=1)]


def short(field: str) -> BeforeValidator:
    """Accept a string in place of an object that has only this field."""
    return BeforeValidator(lambda given: {field: given} if isinstance(given, str) else given)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Domain(_Part):
    """A domain of an organization."""

    domain: Name
    state: Literal["pending", "verified", "failed"] = "verified"


class Member(_Part):
    """A membership. A user with this address is created if there is none."""

    email: Email
    role: Name = "member"
    status: Literal["active", "inactive", "pending"] = "active"


class Invitation(_Part):
    """A pending invitation."""

    email: Email
    role: Name | None = None


class Organization(_Part):
    """An organization with its contents; `roles` are the slugs of its own roles."""

    name: Name
    external_id: str | None = None
    metadata: dict[str, str] = {}
    domains: list[Annotated[Domain, short("domain")]] = []
    roles: list[Name] = []
    members: list[Annotated[Member, short("email")]] = []
    invitations: list[Annotated[Invitation, short("email")]] = []


class User(_Part):
    """A user."""

    email: Email
    first_name: str | None = None
    last_name: str | None = None
    email_verified: bool = True
    external_id: str | None = None


class Seed(_Part):
    """A seed file. `roles` are the slugs of the environment's roles, in addition to `admin` and `member`."""

    knobs: JSON = {}
    roles: list[Name] = []
    users: list[Annotated[User, short("email")]] = []
    organizations: list[Organization] = []


def plant(service: Service, path: Path) -> None:
    """Create the objects of a seed file, without events, as if they had existed before the sandbox started.

    Raises:
        ValueError: the file cannot be read, is not a seed file, or contains something that WorkOS refuses.
    """
    try:
        seed = Seed.model_validate_json(path.read_bytes())
        service.knobs.update(seed.knobs)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {problems(error)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: knobs: {error}") from None
    with service.world.silently():
        _plant(service.world, seed, str(path))


def _plant(world: World, seed: Seed, file: str) -> None:
    for number, slug in enumerate(seed.roles):
        with _at(file, "roles", number):
            world.create_role(slug)
    for number, user in enumerate(seed.users):
        with _at(file, "users", number):
            made = world.create_user(**user.model_dump(exclude={"external_id"}))
            world.update_user(made["id"], external_id=user.external_id)
    for number, organization in enumerate(seed.organizations):
        _plant_organization(world, organization, file, f"organizations.{number}")


def _plant_organization(world: World, organization: Organization, file: str, place: str) -> None:
    domains = [(each.domain, each.state) for each in organization.domains]
    values = organization.model_dump(include={"name", "external_id", "metadata"})
    organization_id = world.create_organization(domains=domains, **values)["id"]
    for number, slug in enumerate(organization.roles):
        with _at(file, place, "roles", number):
            world.create_role(slug, organization_id=organization_id)
    for number, member in enumerate(organization.members):
        with _at(file, place, "members", number):
            user = world.user_by_email(member.email) or world.create_user(member.email)
            world.create_membership(organization_id, user["id"], role=member.role, status=member.status)
    for number, invitation in enumerate(organization.invitations):
        with _at(file, place, "invitations", number):
            world.create_invitation(invitation.email, organization_id, role=invitation.role)


@contextmanager
def _at(file: str, *place: Any) -> Iterator[None]:
    """Name the place in the file if WorkOS refuses what is there."""
    try:
        yield
    except WorldError as error:
        raise ValueError(f"{file}: {'.'.join(map(str, place))}: {error}") from None
