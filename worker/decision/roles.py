"""Maps WorkOS role slugs to local roles. An unknown slug maps to the least privileged role."""

from collections.abc import Iterable, Mapping

LOCAL_ROLES = ("member", "admin")
"""Sorted from least to most privileged."""
DEFAULT_ROLE_MAP: dict[str, str] = {role: role for role in LOCAL_ROLES}


def local_role(slugs: Iterable[str], role_map: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the most privileged local role that the slugs of a membership map to, preceded by that slug.

    Without slugs, the slug is None and the role the least privileged one.
    """
    return max(
        ((slug, role_map.get(slug, LOCAL_ROLES[0])) for slug in sorted(slugs)),
        key=lambda pair: LOCAL_ROLES.index(pair[1]),
        default=(None, LOCAL_ROLES[0]),
    )


def slug_for(role: str, role_map: Mapping[str, str]) -> str | None:
    """Return the WorkOS role slug to use for a local role; None if no slug maps to it.

    The slug with the name of the role is preferred, then the first in alphabetical order.
    """
    slugs = sorted(slug for slug, mapped in role_map.items() if mapped == role)
    return role if role in slugs else next(iter(slugs), None)
