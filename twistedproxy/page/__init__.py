"""The page at ``/`` of every listener, and what it asks the proxy for: coverage, which shows how much of an instance is cached."""
