"""What to load before it is asked for, and when."""
