"""Where frames wait: one interface, several providers."""
