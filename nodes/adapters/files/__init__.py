"""Which files the host has, and what becomes of them."""
