"""Ids and names in the paths of the pages."""

from werkzeug.routing import PathConverter

ESCAPE = "~"


class IdConverter(PathConverter):
    """Puts any id or name into a path, so that the browser requests exactly this path.

    Browsers resolve `.` and `..`, even percent-encoded ones: `/ops/hooks/../replay` would request `/ops/replay`. So
    such a part gets a tilde before it, and so does an empty part or one that begins with a tilde.
    """

    def to_url(self, value: str) -> str:
        """Return the id as it is written in a path."""
        return super().to_url("/".join(map(_escaped, value.split("/"))))

    def to_python(self, value: str) -> str:
        """Return the id that `to_url` wrote."""
        return "/".join(part.removeprefix(ESCAPE) for part in value.split("/"))


def _escaped(part: str) -> str:
    return ESCAPE + part if part in ("", ".", "..") or part.startswith(ESCAPE) else part
