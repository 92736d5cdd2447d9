"""Errors, files, tables, progress, measuring, and reading a command line."""
