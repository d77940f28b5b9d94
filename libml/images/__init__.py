"""What happens to a picture before a model sees it."""
