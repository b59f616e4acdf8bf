"""The HTTP server: requests are buffered until they are complete, so a slow sender never holds a thread."""
