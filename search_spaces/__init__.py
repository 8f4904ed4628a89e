"""Search spaces: functions `(input_shape, classes, **options) -> Space`, found by entry point."""
