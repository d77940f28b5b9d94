"""The training loop and its parts; imports no method, model or config."""
