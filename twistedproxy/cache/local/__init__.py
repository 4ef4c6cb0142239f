"""The cache in files of this host, which all workers and loaders share."""
