"""WorkOS role slugs to local roles: least privilege for what is not known."""

from collections.abc import Iterable, Mapping

LOCAL_ROLES = ("member", "admin")
"""Lowest privilege first."""

DEFAULT_ROLE_MAP: dict[str, str] = {role: role for role in LOCAL_ROLES}


def local_role(slugs: Iterable[str], role_map: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the deciding slug and the local role: the highest that any of `slugs` maps to.

    An unmapped slug counts as the least privilege. Without slugs the slug is None.
    """
    return max(
        ((slug, role_map.get(slug, LOCAL_ROLES[0])) for slug in sorted(slugs)),
        key=lambda pair: LOCAL_ROLES.index(pair[1]),
        default=(None, LOCAL_ROLES[0]),
    )


def slug_for(role: str, role_map: Mapping[str, str]) -> str | None:
    """Return the WorkOS role slug that stands for a local role: its own name if that maps to it; None without any."""
    slugs = sorted(slug for slug, mapped in role_map.items() if mapped == role)
    return role if role in slugs else next(iter(slugs), None)
