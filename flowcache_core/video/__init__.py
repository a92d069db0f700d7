"""Runs from prompt to pixels, one module a model family."""
