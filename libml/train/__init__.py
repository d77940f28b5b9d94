"""The loop, and what it moves."""
