"""Child processes: how they start and end."""
