"""What a model still knows of what it should have forgotten."""
