"""Configs: pure data. A file's get_config(arg) takes what follows the colon."""
