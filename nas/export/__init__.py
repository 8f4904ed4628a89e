"""Writing an architecture in forms that need nothing of this package."""
