"""Evaluators: classes that score an architecture, found by entry point."""
