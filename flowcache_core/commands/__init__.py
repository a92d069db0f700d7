"""What `python -m flowcache_core COMMAND` runs: one module with a `main(argv)` for each command."""
