"""Random operations, repeatable by seed, as a dozen companies would perform them. All names are invented."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from worker.sandbox.shapes import REASON_EXPIRED, REASON_TAKEN
from worker.sandbox.world import World, WorldError

JSON = dict[str, Any]

# Only domains that are reserved for examples and tests, so that no mail can reach anyone.
COMPANIES = [
    ("Acme Rockets", "acme.example"), ("Globex Energy", "globex.test"), ("Initech", "initech.example"),
    ("Umbrella Gardens", "umbrella.test"), ("Hooli", "hooli.example"), ("Stark Lighting", "stark.test"),
    ("Wayne Logistics", "wayne.example"), ("Tyrell", "tyrell.test"), ("Cyberdyne", "cyberdyne.example"),
    ("Soylent Foods", "soylent.test"), ("Wonka Sweets", "wonka.example"), ("Vandelay", "vandelay.test"),
    ("Monarch", "monarch.example.com"), ("Oscorp", "oscorp.example.org"), ("Pied Piper", "piper.invalid"),
]  # fmt: skip
FIRST_NAMES = [
    "Ada", "Alan", "Amina", "Barbara", "Chen", "Diego", "Edsger", "Fatima", "Grace", "Hana", "Ivan", "Jun",
    "Katherine", "Lena", "Mateo", "Niklaus", "Olga", "Priya", "Quentin", "Rosa", "Sven", "Tove", "Uma",
]  # fmt: skip
LAST_NAMES = [
    "Abe", "Berg", "Costa", "Diaz", "Eriksen", "Fischer", "Garcia", "Hopper", "Ito", "Jensen", "Kowalski",
    "Lindgren", "Moreau", "Nakamura", "Okafor", "Petrov", "Quist", "Rossi", "Silva", "Tanaka", "Zhang",
]  # fmt: skip
CUSTOM_ROLES = ["billing", "viewer", "support"]


class _Player:
    """One run of the scenario. It chooses objects and operations with its own random generator."""

    def __init__(self, world: World, companies: int, seed: int) -> None:
        self.world = world
        self.companies = companies
        self.random = Random(f"{seed}-scenario")
        self.permissions_random = Random(f"{seed}-permissions")
        self.invitations_random = Random(f"{seed}-invitations")
        self.certificates_random = Random(f"{seed}-certificates")
        self.made = 0
        self.operations: list[tuple[int, Callable[[], Any]]] = [
            (20, self.hire), (10, self.invite), (12, self.accept), (12, self.change_role),
            (6, self.deactivate), (6, self.reactivate), (6, self.remove), (5, self.invite_again),
            (5, self.edit_user), (3, self.delete_user), (5, self.rename), (6, self.add_domain),
            (6, self.verify_domain), (3, self.fail_domain), (2, self.edit_domain), (2, self.remove_domain),
            (2, self.fight), (1, self.delete_company), (3, self.found_another), (2, self.edit_roles),
            (2, self.connect), (2, self.switch_connection),
        ]  # fmt: skip

    def step(self) -> None:
        """Perform one random operation. It is no error if WorkOS refuses it."""
        with self.world.lock:
            if len(self.world.organizations) < self.companies:
                self.found_company()
                return
            weights = [weight for weight, _ in self.operations]
            operation = self.random.choices(self.operations, weights)[0][1]
            with suppress(WorldError):
                operation()

    # Picking

    def any_of(self, table: dict[str, JSON], **wanted: Any) -> JSON | None:
        """Return a random object with these field values, or None. Such an object may be missed if it is rare."""
        ids = list(table)
        for _ in range(20 if ids else 0):
            found = table[self.random.choice(ids)]
            if all(found[name] == value for name, value in wanted.items()):
                return found
        return None

    def domain_of(self, organization: JSON) -> str:
        """Return the mail domain of a company."""
        return next((domain for name, domain in COMPANIES if organization["name"].startswith(name)), "example.com")

    def roles_for(self, organization_id: str) -> list[str]:
        """Return one role, or sometimes two; most often `member`."""
        with self.world.lock:
            own = [slug for owner, slug in self.world.roles if owner in (None, organization_id)]
        slugs = self.random.choices(own, [6 if slug == "member" else 2 for slug in own], k=2)
        return list(dict.fromkeys(slugs)) if self.random.random() < 0.1 else slugs[:1]

    # Operations

    def found_company(self) -> None:
        """Create a company, usually with its domain, which may already be verified."""
        name, domain = COMPANIES[self.made % len(COMPANIES)]
        if self.made >= len(COMPANIES):
            name, domain = f"{name} {self.made // len(COMPANIES) + 1}", f"unit{self.made}.{domain}"
        self.made += 1
        state = self.random.choice(["verified", "pending", ""])
        self.world.create_organization(name, domains=[(domain, state)] if state else [])

    def found_another(self) -> None:
        """Create another company, unless there are enough."""
        if len(self.world.organizations) < self.companies + 2:
            self.found_company()

    def new_user(self, organization: JSON) -> JSON:
        """Create a user with an unused address, at the company's domain or a private one."""
        first, last = self.random.choice(FIRST_NAMES), self.random.choice(LAST_NAMES)
        domain = self.domain_of(organization) if self.random.random() < 0.85 else "example.org"
        verified = self.random.random() < 0.85
        email = f"{first}.{last}@{domain}".lower()
        if self.world.user_by_email(email) is not None:
            email = f"{first}.{last}{self.random.randrange(10**6)}@{domain}".lower()
        return self.world.create_user(email, first_name=first, last_name=last, email_verified=verified)

    def join(self, status: str) -> None:
        """Make a new or existing user a member of a company."""
        organization = self.any_of(self.world.organizations)
        if organization is not None:
            known = self.any_of(self.world.users) if self.random.random() < 0.35 else None
            user = known or self.new_user(organization)
            roles = self.roles_for(organization["id"])
            self.world.create_membership(organization["id"], user["id"], roles=roles, status=status)

    def hire(self) -> None:
        self.join("active")

    def invite(self) -> None:
        self.join("pending")
        self.edit_invitation()

    def edit_invitation(self) -> None:
        """Invite an address, or accept, revoke or resend an invitation."""
        dice, invitations = self.invitations_random, list(self.world.invitations)
        if not invitations or dice.random() < 0.4:
            email = f"{dice.choice(FIRST_NAMES)}.{dice.randrange(100)}@{dice.choice(COMPANIES)[1]}"
            organizations, users = list(self.world.organizations), list(self.world.users)
            owner = dice.choice([None, *organizations])
            self.world.create_invitation(email, owner, inviter_user_id=dice.choice([None, *users]), role="member")
            return
        id = dice.choice(invitations)
        match dice.randrange(3):
            case 0:
                self.world.accept_invitation(id, dice.choice([None, *self.world.users]))
            case 1:
                self.world.revoke_invitation(id)
            case _:
                self.world.resend_invitation(id)

    def on_membership(self, operation: Callable[[str], Any], **wanted: Any) -> None:
        """Apply an operation to a random membership with these field values."""
        found = self.any_of(self.world.memberships, **wanted)
        if found is not None:
            operation(found["id"])

    def accept(self) -> None:
        self.on_membership(self.world.activate_membership, status="pending")

    def deactivate(self) -> None:
        self.on_membership(self.world.deactivate_membership, status="active")

    def reactivate(self) -> None:
        self.on_membership(self.world.reactivate_membership, status="inactive")

    def remove(self) -> None:
        self.on_membership(self.world.delete_membership)

    def change_role(self) -> None:
        found = self.any_of(self.world.memberships)
        if found is not None:
            self.world.update_membership(found["id"], roles=self.roles_for(found["organization_id"]))

    def invite_again(self) -> None:
        """Remove a member and invite the same person again, so that the membership gets a new id."""
        found = self.any_of(self.world.memberships)
        if found is not None:
            self.world.delete_membership(found["id"])
            self.world.create_membership(found["organization_id"], found["user_id"], status="pending")

    def edit_user(self) -> None:
        """Verify an address, or change the last name."""
        found = self.any_of(self.world.users)
        if found is not None:
            values: JSON = {"email_verified": True}
            if found["email_verified"]:
                values = {"last_name": self.random.choice(LAST_NAMES)}
            self.world.update_user(found["id"], **values)

    def delete_user(self) -> None:
        found = self.any_of(self.world.users)
        if found is not None:
            self.world.delete_user(found["id"])

    def rename(self) -> None:
        """Change only the end of the name, which the company's mail domain is derived from."""
        found = self.any_of(self.world.organizations)
        if found is not None:
            name = next((name for name, _ in COMPANIES if found["name"].startswith(name)), found["name"])
            ending = self.random.choice([" Inc", " GmbH", " Group", " Labs", " International", ""])
            self.world.update_organization(found["id"], name=name + ending)

    def delete_company(self) -> None:
        found = self.any_of(self.world.organizations)
        if found is not None:
            self.world.delete_organization(found["id"])

    def add_domain(self) -> None:
        """Add another domain to a company, pending or already verified."""
        found = self.any_of(self.world.organizations)
        if found is not None:
            prefix = self.random.choice(["mail", "labs", "shop", "eu", "us", "dev"])
            state = self.random.choice(["pending", "pending", "verified"])
            self.world.create_domain(found["id"], f"{prefix}.{self.domain_of(found)}", state)

    def verify_domain(self) -> None:
        found = self.any_of(self.world.domains, state="pending") or self.any_of(self.world.domains, state="failed")
        if found is not None:
            self.world.verify_domain(found["id"])

    def fail_domain(self) -> None:
        found = self.any_of(self.world.domains, state="pending")
        if found is not None:
            self.world.fail_domain(found["id"], REASON_EXPIRED)

    def edit_domain(self) -> None:
        """Set a state for which only organization_domain.updated is emitted."""
        found = self.any_of(self.world.domains)
        if found is not None:
            self.world.update_domain(found["id"], state=self.random.choice(["verified", "pending", "legacy_verified"]))

    def remove_domain(self) -> None:
        found = self.any_of(self.world.domains)
        if found is not None:
            self.world.delete_domain(found["id"])

    def fight(self) -> None:
        """Add a domain of one organization to a second one, where it is verified too or fails."""
        held, rival = self.any_of(self.world.domains, state="verified"), self.any_of(self.world.organizations)
        if held is not None and rival is not None and held["organization_id"] != rival["id"]:
            claimed = self.world.create_domain(rival["id"], held["domain"])
            if self.random.random() < 0.5:
                self.world.fail_domain(claimed["id"], REASON_TAKEN)
            else:
                self.world.verify_domain(claimed["id"])

    def edit_roles(self) -> None:
        """Create, change or delete a custom role of the environment or of an organization, and its permission."""
        found = self.any_of(self.world.organizations)
        owner = found["id"] if found is not None and self.random.random() < 0.5 else None
        slug = self.random.choice(CUSTOM_ROLES)
        self.edit_permission(f"{slug}:read")
        if (owner, slug) not in self.world.roles:
            self.world.create_role(slug, organization_id=owner)
        elif self.random.random() < 0.6:
            self.world.update_role(slug, organization_id=owner, permissions=[f"{slug}:read"])
        else:
            self.world.delete_role(slug, organization_id=owner)

    def edit_permission(self, slug: str) -> None:
        """Create, change or delete a permission."""
        if slug not in self.world.permissions:
            self.world.create_permission(slug)
        elif self.permissions_random.random() < 0.6:
            self.world.update_permission(slug, name=f"Read {self.permissions_random.randrange(100)}")
        else:
            self.world.delete_permission(slug)

    def connect(self) -> None:
        found = self.any_of(self.world.organizations)
        if found is not None:
            kind = self.random.choice(["OktaSAML", "GoogleOAuth", "EntraIdOIDC"])
            made = self.world.create_connection(
                found["id"], f"{found['name']} sign-in", connection_type=kind, domains=[self.domain_of(found)]
            )
            self.world.activate_connection(made["id"])
            dice = self.certificates_random
            renewed, days = dice.random() < 0.7, dice.randrange(-5, 900)
            self.world.update_certificate(made["id"], days=days, renewed=renewed)

    def switch_connection(self) -> None:
        found = self.any_of(self.world.connections)
        if found is not None:
            turn = [
                self.world.activate_connection,
                self.world.deactivate_connection,
                self.world.delete_connection,
            ]
            self.random.choice(turn)(found["id"])


def play(
    world: World,
    events: int,
    *,
    companies: int = 12,
    seed: int = 0,
    rate: float | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Perform random operations until at least `events` events were emitted; return their number.

    `rate` in events a second (None: as fast as possible); setting `stop` ends it early.
    """
    stop = stop or threading.Event()
    player, first, started = _Player(world, companies, seed), len(world.events), time.monotonic()
    while (done := len(world.events) - first) < events and not stop.is_set():
        if rate is not None:
            stop.wait(max(0.0, started + done / rate - time.monotonic()))
        player.step()
    return len(world.events) - first


def populate(
    world: World,
    *,
    organizations: int,
    members: int,
    seed: int = 0,
    users: int | None = None,
    quiet: bool = True,
) -> None:
    """Fill a world for benchmarks: organizations with a verified domain and `members` memberships each.

    `users` are shared among them (default: one for every membership); `quiet`: without any events.
    """
    random = Random(f"{seed}-populate")

    def fill() -> None:
        people = [
            world.create_user(f"person{number}@people.example", first_name="Person", last_name=str(number))["id"]
            for number in range(organizations * members if users is None else users)
        ]
        for number in range(organizations):
            made = world.create_organization(f"Company {number}", domains=[(f"company{number}.example", "verified")])
            chosen = (
                people[number * members : (number + 1) * members] if users is None else random.sample(people, members)
            )
            for user_id in chosen:
                world.create_membership(made["id"], user_id, role=random.choice(["admin", "member", "member"]))

    if quiet:
        with world.silently():
            fill()
    else:
        fill()
