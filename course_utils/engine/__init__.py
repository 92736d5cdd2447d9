"""The machinery that makes ``fit`` exact and fast: processes, loading, caches, checkpoints, the log of runs."""
