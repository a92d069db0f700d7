"""What ``dev.py`` is made of: processes, the environment it makes, the suites of tests. Standard library only."""
