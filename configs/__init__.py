"""Configs: data only. get_config(arg) takes the text after the colon."""
