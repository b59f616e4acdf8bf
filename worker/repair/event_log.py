"""Reads the WorkOS events API page by page, after a cursor or since a time. The events are not interpreted here."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

import structlog

from worker.errors import BadRequestError, CursorLostError, EventTypesRefusedError, NotFoundError
from worker.kinds import SUBSCRIBED
from worker.workos_api.client import LastPageError, Page, WorkOSClient

log = structlog.get_logger()

CHUNK = timedelta(days=30)
"""The longest time range that WorkOS accepts in one query (docs/workos.md)."""
OLDEST = timedelta(days=90)
"""WorkOS keeps events for this long (docs/workos.md)."""
EXPIRY_MARGIN = timedelta(minutes=10)
READABLE = OLDEST - EXPIRY_MARGIN
"""A range starts at most this long ago: one that starts at `OLDEST` is too old when WorkOS evaluates it."""

Progressed = Callable[[Page], None]


class EventLog:
    """Reads the events of some types, by default all that are mirrored, oldest first.

    `now` is the current time by WorkOS's clock, aware. WorkOS refuses a query (400) if it does not know one of the
    event types. That type is then left out. `refused` has WorkOS's message for each type that is left out; an earlier
    `EventLog` may have found them. `progressed` is called with each page that was read.
    """

    def __init__(
        self,
        workos: WorkOSClient,
        now: datetime,
        refused: dict[str, str] | None = None,
        types: Sequence[str] = SUBSCRIBED,
        progressed: Progressed = lambda _page: None,
    ) -> None:
        self._workos = workos
        self._now = now
        self.refused = {} if refused is None else refused
        self._all = types
        self._progressed = progressed

    def after(self, cursor: str) -> Iterator[Page]:
        """Yield the pages that follow an event.

        Raises:
            CursorLostError: WorkOS refuses the cursor; nothing was yielded.
        """
        pages = self._pages(after=cursor)
        try:
            first = next(pages)
        except (BadRequestError, NotFoundError) as error:
            raise CursorLostError from error
        yield first
        yield from pages

    def after_or_since(self, cursor: str | None, start: datetime) -> Iterator[Page]:
        """Yield the pages that follow an event; without a cursor that WorkOS accepts, those since `start`."""
        if cursor is not None:
            try:
                yield from self.after(cursor)
            except CursorLostError:
                log.warning("cursor_lost", cursor=cursor, reads_from=start.isoformat())
            else:
                return
        yield from self.since(start)

    def since(self, start: datetime) -> Iterator[Page]:
        """Yield the pages since a time, in ranges of at most `CHUNK`. The last range has no end."""
        while (end := start + CHUNK) < self._now:
            yield from self._pages(start=start, end=end)
            start = end
        yield from self._pages(start=start)

    @property
    def all_types(self) -> bool:
        """Whether no event type was left out so far."""
        return not self.refused

    def accepts_all_types(self) -> bool:
        """Ask WorkOS whether it accepts all event types by now. If so, none is left out any more."""
        if self._refusal(*self._all) is None:
            self.refused.clear()
        return self.all_types

    def require_all_types(self) -> None:
        """Raise `EventTypesRefusedError`, with WorkOS's message for each type, if event types were left out."""
        if self.refused:
            refused = "; ".join(f"{type} ({why})" for type, why in self.refused.items())
            raise EventTypesRefusedError(f"event types refused: {refused}; events of all other types were read")

    def _pages(
        self, *, after: str | None = None, start: datetime | None = None, end: datetime | None = None
    ) -> Iterator[Page]:
        while start is not None or after is not None:
            try:
                page = self._page(after, start, end)
            except LastPageError as error:
                yield error.page  # the caller stores it first
                raise
            self._progressed(page)
            yield page
            after, start = page.after, None

    def _page(self, after: str | None, start: datetime | None, end: datetime | None) -> Page:
        try:
            return self._workos.events(self._types(), after=after, start=start, end=end)
        except BadRequestError:
            if not self._leave_out_refused():
                raise
            return self._page(after, start, end)

    def _leave_out_refused(self) -> bool:
        """Query each type alone and leave out refused ones; return whether some, but not all, were refused."""
        types = self._types()
        if self._refusal(*types) is None:
            return False  # not because of the types
        refused = {type: why for type in types if (why := self._refusal(type)) is not None}
        if not refused or len(refused) == len(types):
            return False
        self.refused.update(refused)
        log.error("event_types_refused", types=sorted(refused), error=next(iter(refused.values())))
        return True

    def _types(self) -> list[str]:
        return [type for type in self._all if type not in self.refused]

    def _refusal(self, *types: str) -> str | None:
        """Return WorkOS's message if it refuses these types; None if it accepts them."""
        try:
            self._workos.events(types, start=self._now - EXPIRY_MARGIN)
        except BadRequestError as error:
            return str(error)
        return None
