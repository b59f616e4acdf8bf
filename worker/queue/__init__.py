"""What processes tell each other through Redis: to look, and what they counted. Nothing that may not be lost."""
