"""Where frames come from: one interface, several providers."""
