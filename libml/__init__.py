"""The loop and its parts; knows no method, no model and no config."""
