"""HTTP in front: routes, negotiation, answers, pass-through, status."""
