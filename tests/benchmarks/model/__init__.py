"""A model of readers, a proxy and a store, for trying prefetch rules: no sockets, no clock but its own."""
