"""How the drill judges the status."""

import pytest

from tests.drill.status import LIMIT_SECONDS, Answer, Facts, Record, reported

WELL: Facts = {"redis": False, "clock": False, "no worker on drain": False, "no worker on repair": False}
NO_WORKER = Answer(trusted=False, texts=["no worker is running on repair: start workos-sync worker"])
ALL_WELL = Answer(trusted=True, texts=[])


def facts(**true: bool) -> Facts:
    found = WELL | true
    return found | {"untrusted": any(found.values())}


def record(*answers: tuple[Answer, Facts], seconds: float = 10.0) -> list[str]:
    made = Record("status")
    for answer, truth in answers:
        made.add(answer, truth, seconds, ["kill -9 lane"])
    made.close()
    return made.wrong


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("no worker is running: start workos-sync worker", {"no worker on drain", "no worker on repair"}),
        ("no worker is running on repair: start workos-sync worker", {"no worker on repair"}),
        (
            "no worker is running on repair (therefore the mirror is 61 s old; the oldest pending event waits): start",
            {"no worker on repair", "bound_missed", "overdue"},
        ),
        ("3 jobs wait in the lane repair, which has no worker: start", {"no worker on repair"}),
        ("Redis does not answer: ConnectionError; start it", {"redis"}),
        ("the clock has never run: start workos-sync clock", {"clock"}),
        ("2 events failed: run workos-sync events failures", {"failed_events"}),
        ("the oldest pending event has waited for 61 s: check worker and clock", {"overdue"}),
        (
            "the mirror is 1 min 5 s old, so answers with a smaller staleness bound are stale (/events: 503): start",
            {"bound_missed"},
        ),
        ("the database's clock was set back, so the mirror's age is unknown: start", {"bound_missed"}),
        ("the newest events were never read, so every bounded answer is stale: start", {"bound_missed"}),
        ("the newest events are read every 10 s instead of 5 s: raise", set()),
        ("resync 0af3 failed: WorkOS did not answer", {"resync_failed"}),
        ("resync 0af3 withholds 69 deletions: review them", {"withheld_deletions"}),
        ("12 memberships have a role that is not in ROLE_MAP: viewer", set()),
        ("1 SAML certificate will expire soon, the first at 2026-12-01", set()),
        ("no webhook for 700 s, although", {"no webhook for N s, although"}),
    ],
)
def test_texts_of_the_status_are_recognized(text: str, names: set[str]) -> None:
    assert reported(Answer(trusted=True, texts=[text]), ("drain", "repair")) == names


def test_an_alarm_without_a_cause_is_wrong_once_it_lasts() -> None:
    assert record(*[(NO_WORKER, facts())] * 3) == []
    wrong = record(*[(NO_WORKER, facts())] * 4)
    assert len(wrong) == 2, "the lane, and the verdict about the mirror"
    assert any("'no worker on repair' reported, although it was not so, for 40 s" in line for line in wrong)
    assert all(line.endswith("during kill -9 lane") for line in wrong)


def test_a_silent_status_is_wrong_once_it_lasts() -> None:
    away = facts(clock=True)
    assert any("'clock' not reported" in line for line in record(*[(ALL_WELL, away)] * 4))
    assert record(*[(ALL_WELL, away)] * 3, (ALL_WELL, facts()), *[(ALL_WELL, away)] * 3) == []


def test_an_answer_that_says_nothing_about_the_mirror_is_not_wrong_about_it() -> None:
    clock = Answer(trusted=None, texts=["the clock has not run for 90 s: start workos-sync clock"])
    assert record((clock, facts(clock=True)), seconds=99) == []


def test_two_short_faults_in_a_row_are_not_one_long_fault() -> None:
    """Reported too early, then not at all: two short times."""
    here = facts(**{"no worker on repair": True})
    assert record(*[(NO_WORKER, facts())] * 3, *[(ALL_WELL, here)] * 3) == []


def test_an_unknown_fact_makes_no_answer_wrong() -> None:
    unknown = {name: value for name, value in facts(redis=True).items() if not name.startswith("no worker")}
    redis = Answer(trusted=False, texts=["Redis does not answer: TimeoutError; start it"])
    assert (
        record((redis, unknown), (Answer(trusted=False, texts=[*redis.texts, *NO_WORKER.texts]), unknown), seconds=99)
        == []
    )


def test_a_text_that_belongs_to_no_fault_is_an_alarm_without_a_cause() -> None:
    strange = Answer(trusted=True, texts=["the moon is full"])
    assert any("the moon is full" in line for line in record((strange, facts()), seconds=LIMIT_SECONDS + 1))
