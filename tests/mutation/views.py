"""Mutation testing of the views: a pytest plugin that runs every test once for each mutant of each view.

A mutant drops or negates one condition. It replaces the view in the template databases that `tests/conftest.py` copies
for each test. Once a test has failed on a database, the mutant is killed there and its other tests are left out.
"""

import re
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
import sqlglot
from sqlalchemy import Engine, create_engine
from sqlglot import exp

from models.views import FUNCTIONS, VIEWS

KINDS = {"sqlite": "sqlite", "postgresql": "postgres"}
"""Kind of database → sqlglot's name of its SQL."""


class Mutant(NamedTuple):
    """A view with one condition changed; `change` is None for the view as it is."""

    view: str
    change: str | None
    query: exp.Expr
    original: exp.Expr


def source(view: str) -> str:
    """Return the SQL of a view, with the keys of `FUNCTIONS` in place of the functions."""
    own = {name: name for name in FUNCTIONS["sqlite"]}
    return VIEWS[view].query.format_map(own)


def rendered(query: exp.Expr, kind: str) -> str:
    """Return the SQL of a query for a kind of database."""
    sql = query.sql(dialect=KINDS[kind], normalize_functions=False)
    for name, function in FUNCTIONS[kind].items():
        sql = re.sub(rf"\b{name}\b", function, sql)
    return sql


def mutants(view: str) -> Iterator[Mutant]:
    """Yield every mutant of a view, its own query first."""
    query = sqlglot.parse_one(source(view))
    yield Mutant(view, None, query, query)
    for place, node in enumerate(query.walk()):
        for what, changed in changes(node):
            mutated = query.copy()
            list(mutated.walk())[place].replace(changed)
            yield Mutant(view, f"{what}: {' '.join(node.sql().split())}", mutated, query)


def changes(node: exp.Expr) -> Iterator[tuple[str, exp.Expr]]:
    """Yield each way to change one node, in words and as what takes its place."""
    if is_term(node):
        yield "drop", exp.false() if isinstance(connective(node), exp.Or) else exp.true()
        yield "negate", exp.not_(node.copy())
    if isinstance(node, exp.Case):
        branches = node.args["ifs"]
        for branch in branches:
            rest = [other.copy() for other in branches if other is not branch]
            default = (node.args.get("default") or exp.null()).copy()
            yield f"drop branch {branch.this.sql()}", exp.Case(ifs=rest, default=default) if rest else default
            negated = [other.copy() for other in branches]
            negated[branches.index(branch)].set("this", exp.not_(branch.this.copy()))
            yield f"negate branch {branch.this.sql()}", exp.Case(ifs=negated, default=default.copy())
    if isinstance(node, exp.Coalesce):
        yield "drop default", node.this.copy()
        if isinstance(node.expressions[0], exp.Boolean):
            yield "negate default", exp.Coalesce(this=node.this.copy(), expressions=[exp.not_(node.expressions[0])])
    if isinstance(node, exp.In):
        for value in node.expressions:
            rest = [other.copy() for other in node.expressions if other is not value]
            yield f"drop {value.sql()}", exp.In(this=node.this.copy(), expressions=rest)
    if isinstance(node, exp.Join) and node.side == "LEFT":
        inner = node.copy()
        inner.set("side", None)
        yield "inner join", inner


def is_term(node: exp.Expr) -> bool:
    """Whether a node is a condition of WHERE or ON, or one of those that AND and OR combine there."""
    above = connective(node)
    if isinstance(node, exp.And | exp.Or):
        return isinstance(above, exp.And | exp.Or) and type(above) is not type(node)
    in_place = isinstance(above, exp.Where | exp.And | exp.Or) or (isinstance(above, exp.Join) and node.arg_key == "on")
    return in_place and not isinstance(node, exp.Paren)


def connective(node: exp.Expr) -> exp.Expr | None:
    """Return what a condition is part of, parentheses left out."""
    above = node.parent
    while isinstance(above, exp.Paren):
        above = above.parent
    return above


def kind_of(item: pytest.Item) -> str:
    return "postgresql" if "postgresql" in item.nodeid else "sqlite"


def mutant_of(item: pytest.Item) -> Mutant:
    found: Mutant = item.callspec.params["mutated_view"]  # type: ignore[attr-defined]
    return found


class Mutation:
    """The plugin. `survivors` are the mutants that no test failed on, with the kind of database.

    Args:
        view: the view to mutate.
    """

    def __init__(self, view: str) -> None:
        self.mutants = list(mutants(view))
        self.killed: set[tuple[int, str]] = set()

    def alive(self) -> list[tuple[str, Mutant]]:
        changed = [mutant for mutant in self.mutants if mutant.change]
        return [(kind, mutant) for mutant in changed for kind in KINDS if (id(mutant), kind) not in self.killed]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        names = [f"{number}-{mutant.view}" for number, mutant in enumerate(self.mutants)]
        metafunc.parametrize("mutated_view", self.mutants, ids=names, indirect=True, scope="session")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if (id(mutant_of(item)), kind_of(item)) in self.killed:
            pytest.skip("killed")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        mutant = mutant_of(item)
        if report.failed and (report.when != "call" or not mutant.change):
            pytest.exit(f"{item.nodeid} fails without a mutant:\n{report.longreprtext}", returncode=2)
        if report.failed:
            self.killed.add((id(mutant), kind_of(item)))
        return report


@pytest.fixture(scope="session", autouse=True)
def mutated_view(request: pytest.FixtureRequest, sqlite_template: Path, postgres_server: Engine) -> Iterator[None]:
    """The view that all databases made meanwhile have."""
    mutant: Mutant = request.param

    def put(query: exp.Expr) -> None:
        with closing(sqlite3.connect(sqlite_template, isolation_level=None)) as connection:
            create = f"CREATE VIEW {mutant.view} AS {rendered(query, 'sqlite')}"
            connection.executescript(f"DROP VIEW {mutant.view}; {create}")
        template = create_engine(postgres_server.url.set(database="template"))
        with template.begin() as tx:  # other views depend on this one
            tx.exec_driver_sql(f"CREATE OR REPLACE VIEW {mutant.view} AS {rendered(query, 'postgresql')}")
        template.dispose()

    put(mutant.query)
    yield
    put(mutant.original)
