"""Child processes: how they are started, called, kept alive and ended."""
