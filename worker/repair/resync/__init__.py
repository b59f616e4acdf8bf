"""Full resyncs: list what WorkOS has, repair the mirror, confirm every deletion."""
