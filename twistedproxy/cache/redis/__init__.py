"""The cache on a server that speaks the Redis protocol."""
