"""The read-through: grants, in-flight sharing, the cache and then the origin."""
