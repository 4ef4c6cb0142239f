"""Loads that callers ask for by name: of instances, series and studies."""
