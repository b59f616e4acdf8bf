"""Compile the modules that run; the Containerfile runs this.

Imports every module of the product, so that Python compiles it and what it imports. Of the compiled modules of
libraries, only the bytecode is kept, which saves a fifth of the image.
"""

import pkgutil
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

PRODUCT = ("models", "worker", "webhooks")
LOADED_LATER = (
    *("psycopg", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite.pysqlite"),
    *("httpcore2", "truststore"),
)
"""Modules of libraries that are loaded when they are first used."""

for package in map(import_module, PRODUCT):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__") and ".migrations." not in found.name:
            with suppress(ImportError):  # of an extra that is not installed
                vars(import_module(found.name))  # also loads a module that waits until it is needed
for name in LOADED_LATER:
    import_module(name)
for name, module in list(sys.modules.items()):
    source, compiled = (Path(getattr(module, attribute, None) or "") for attribute in ("__file__", "__cached__"))
    library = "site-packages" in source.parts and name.split(".")[0] not in PRODUCT
    if library and source.suffix == ".py" and compiled.is_file():
        compiled.replace(source.with_suffix(".pyc"))
        source.unlink()
