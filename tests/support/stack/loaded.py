"""Loads all modules of the product, with the sandbox; see tests.support.stack.forked."""

import gc
import pkgutil
from importlib import import_module

import models
import webhooks
import worker

for package in (models, worker, webhooks):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__") and ".migrations." not in found.name:
            vars(import_module(found.name))  # also loads a module that waits until it is needed
gc.collect()
gc.freeze()
