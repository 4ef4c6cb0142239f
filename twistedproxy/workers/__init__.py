"""Several processes that share the listening ports: one parent that starts and watches them."""
