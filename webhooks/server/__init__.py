"""The HTTP server: buffers each request until it is complete, so that a slow sender never holds a thread."""
