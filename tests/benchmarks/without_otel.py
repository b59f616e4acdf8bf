"""The command line as without the extra `otel`: nothing of OpenTelemetry can be imported."""

import runpy
import sys

sys.modules["opentelemetry"] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
runpy.run_module("worker.cli", run_name="__main__", alter_sys=True)
