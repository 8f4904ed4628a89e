"""Comparing strategies on tables of measured results, and real runs with each other."""
