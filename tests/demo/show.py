"""Live progress: bars in a terminal, otherwise a line every two seconds."""

from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tests.demo.play import Sample

LINE_SECONDS = 2.0


def follow(console: Console, samples: Iterable[Sample], events: int) -> Sample:
    """Show `samples` as they arrive; return the last one."""
    return _bars(console, samples, events) if console.is_terminal else _lines(console, samples)


def _lines(console: Console, samples: Iterable[Sample]) -> Sample:
    printed, last = -LINE_SECONDS, None
    for last in samples:
        if last.settled or last.seconds - printed >= LINE_SECONDS:
            printed = last.seconds
            workos = last.workos
            console.print(
                f"  {last.seconds:4.1f} s  sent {last.sent:,}  acknowledged {workos['acknowledged']:,}  "
                f"forged and rejected {workos['forged_refused']:,}  applied {last.applied:,} ({_rate(last)})",
                soft_wrap=True,
                highlight=False,
            )
    assert last is not None
    return last


def _bars(console: Console, samples: Iterable[Sample], events: int) -> Sample:
    columns = (
        TextColumn("  {task.description:<20}"),
        BarColumn(bar_width=36),
        TextColumn("{task.completed:>7,.0f}[dim] of {task.total:,.0f}"),
        TextColumn("[dim]{task.fields[note]}"),
    )
    last = None
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bars = {
            name: progress.add_task(name, total=events, note="")
            for name in ("sent", "acknowledged", "forged and rejected", "applied")
        }
        for last in samples:
            _update(progress, bars, last, events)
    assert last is not None
    return last


def _update(progress: Progress, bars: dict[str, TaskID], sample: Sample, events: int) -> None:
    workos = sample.workos
    expected = max(events, workos["generated"])
    state = {
        "sent": (sample.sent, max(expected, sample.sent + workos["pending"]), "deliveries"),
        "acknowledged": (workos["acknowledged"], expected, "events"),
        "forged and rejected": (workos["forged_refused"], workos["forged"], "deliveries with a wrong signature"),
        "applied": (sample.applied, expected, f"events, {_rate(sample)}"),
    }
    for name, (done, total, note) in state.items():
        progress.update(bars[name], completed=done, total=total, note=note)
    progress.refresh()


def _rate(sample: Sample) -> str:
    return f"{sample.applied / max(sample.seconds, 0.1):,.0f}/s"
