"""The operators' pages under /ops: what stands where, why, and the buttons that mend it safely."""

from webhooks.ops.routes import install

__all__ = ["install"]
