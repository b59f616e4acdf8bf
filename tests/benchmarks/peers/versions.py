"""Versions of objects, and the signed event that announces one, as WorkOS and as Stripe send it."""

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tests.benchmarks.deliveries import Delivery
from tests.support import JSON, SECRET, sample, sign

START = datetime(2026, 1, 1, tzinfo=UTC)
CREATED, UPDATED, DELETED = (
    sample(f"organization.{what}") | {"context": {}} for what in ("created", "updated", "deleted")
)

METADATA = {"about": "a workspace of the benchmark " * 9}
"""Makes the body of an organization as long as that of a product, about 650 bytes."""
PRODUCT: JSON = {
    "id": "",
    "object": "product",
    "active": True,
    "attributes": [],
    "created": int(START.timestamp()),
    "default_price": None,
    "description": "A product",
    "images": [],
    "livemode": False,
    "marketing_features": [],
    "metadata": {"plan": "team"},
    "name": "",
    "package_dimensions": None,
    "shippable": None,
    "statement_descriptor": None,
    "tax_code": None,
    "type": "service",
    "unit_label": None,
    "updated": 0,
    "url": None,
}
STRIPE_EVENT: JSON = {
    "id": "",
    "object": "event",
    "api_version": "2020-08-27",
    "created": 0,
    "data": {},
    "livemode": False,
    "pending_webhooks": 1,
    "request": {"id": None, "idempotency_key": None},
    "type": "",
}


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an object: 0 is its creation.

    Versions of an object are a whole second apart, so that a system that compares seconds loses nothing by that.
    """

    object: int
    number: int
    deleted: bool = False

    @property
    def at(self) -> datetime:
        """When it was made."""
        return START + timedelta(seconds=self.number)


@dataclass(frozen=True, slots=True)
class Form:
    """How a sender announces a version: the prefix of the object's id, the body, and the signature of a body."""

    prefix: str
    body: Callable[[Version], bytes]
    sign: Callable[[bytes], str]

    def delivery(self, version: Version) -> Delivery:
        """Return the body of a version and its signature, which is valid for some minutes."""
        body = self.body(version)
        return self.sign(body), body

    def id_of(self, version: Version) -> str:
        """Return the id of the object."""
        return f"{self.prefix}{version.object}"

    def object_of(self, id: str) -> int:
        """Return the number of the object with this id."""
        return int(id.removeprefix(self.prefix))


def _organization(version: Version) -> bytes:
    at, name = _iso(version.at), str(version.number)
    event = DELETED if version.deleted else UPDATED if version.number else CREATED
    data = {
        "id": f"org_{version.object}",
        "name": name,
        "domains": [],
        "metadata": METADATA,
        "created_at": _iso(START),
        "updated_at": at,
    }
    id = f"event_{version.object}_{version.number}"
    return json.dumps(event | {"id": id, "created_at": at, "data": event["data"] | data}).encode()


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _product(version: Version) -> bytes:
    at = int(version.at.timestamp())
    product = PRODUCT | {"id": f"prod_{version.object}", "name": str(version.number), "updated": at}
    what = "deleted" if version.deleted else "updated" if version.number else "created"
    id = f"evt_{version.object}_{version.number}"
    event = STRIPE_EVENT | {"id": id, "type": f"product.{what}", "created": at, "data": {"object": product}}
    return json.dumps(event).encode()


def _stripe_signature(body: bytes) -> str:
    at = int(time.time())
    return f"t={at},v1={hmac.new(SECRET.encode(), f'{at}.'.encode() + body, hashlib.sha256).hexdigest()}"


WORKOS = Form("org_", _organization, sign)
STRIPE = Form("prod_", _product, _stripe_signature)


@dataclass
class Feed:
    """Ever newer versions of `objects` objects in turn; the first round creates them."""

    objects: int
    taken: int = 0

    def take(self, number: int) -> Iterator[Version]:
        """Yield the next `number` versions."""
        first, self.taken = self.taken, self.taken + number
        for place in range(first, first + number):
            yield Version(place % self.objects, place // self.objects)
