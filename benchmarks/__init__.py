"""What produces every figure the README states. ``python dev.py bench`` runs them; results go to benchmarks/results."""
