"""Devices and processes, and what runs on them."""
