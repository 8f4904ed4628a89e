"""Search strategies: classes with `ask` and `tell`, found by entry point."""
