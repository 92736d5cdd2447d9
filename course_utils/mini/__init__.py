"""The embedded networks and their weights."""
