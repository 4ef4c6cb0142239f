"""Several processes behind the same ports."""
