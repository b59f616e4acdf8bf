"""Imports that wait until they are needed. Commands use them, because each needs few of the modules it names."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import LazyLoader
from types import ModuleType


class _Loader(SourceFileLoader):
    """Loads a module whose own imports do not wait."""

    def exec_module(self, module: ModuleType) -> None:
        """Load the module."""
        active = _Finder in sys.meta_path
        if active:
            sys.meta_path.remove(_Finder)
        try:
            super().exec_module(module)
        finally:
            if active:
                sys.meta_path.insert(0, _Finder)


class _Finder(PathFinder):
    """Finds modules as Python does, and loads each when one of its names is first used."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module; None if there is none."""
        spec = super().find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = LazyLoader(_Loader(spec.loader.name, spec.loader.path))
        return spec


@contextmanager
def without_package(name: str) -> Iterator[None]:
    """Import modules in this block as if an optional package was not installed."""
    loaded = sys.modules.pop(name, None)
    sys.modules[name] = None  # type: ignore[assignment]  # the documented way to let an import fail
    try:
        yield
    finally:
        del sys.modules[name]
        if loaded is not None:
            sys.modules[name] = loaded


@contextmanager
def lazy_imports() -> Iterator[None]:
    """Load the modules that are imported in this block when one of their names is first used.

    Write `from package import module` there. To import a name from a module loads the module at once, and so does
    `import module` if another module has imported it already.
    """
    sys.meta_path.insert(0, _Finder)
    try:
        yield
    finally:
        sys.meta_path.remove(_Finder)
