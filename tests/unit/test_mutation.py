"""The names in the set-up of mutation testing exist: its sources, its tests, and the mutants that change nothing."""

import difflib

from models.views import VIEWS
from tests.mutation.__main__ import EQUIVALENT, ROOT, TARGETS, view_tests
from tests.mutation.views import mutants

PATHS = [path for target in TARGETS.values() for path in (*target.sources, *target.tests)]


def test_targets_exist() -> None:
    tests = [path for view in VIEWS for path in view_tests(view)]
    assert [path for path in (*PATHS, *tests) if not list(ROOT.glob(path))] == []


def test_equivalent_mutants_are_mutants_of_existing_lines() -> None:
    of_views = {f"{view} {mutant.change}" for view in VIEWS for mutant in mutants(view)}
    sources = [path for target in TARGETS.values() for source in target.sources for path in ROOT.glob(source)]
    lines = [line.strip() for path in sources if path.suffix == ".py" for line in path.read_text().splitlines()]
    unknown = [name for name in EQUIVALENT if name not in of_views]
    assert unknown != list(EQUIVALENT), "those of views are found"
    assert [line for line in unknown if not difflib.get_close_matches(line, lines, cutoff=0.9)] == []
