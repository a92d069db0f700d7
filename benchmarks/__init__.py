"""What produces the figures of docs/figures.md. ``python dev.py bench`` runs them; results go to benchmarks/results."""
