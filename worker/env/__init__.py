"""The environment variables of a process: where settings come from, and the name that separates environments."""
