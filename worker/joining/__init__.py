"""Auto-join: who joins a workspace by domain, who does not, and making them members."""
