"""``twistedproxy-warm``: have the frames of instances, series or studies loaded before anybody asks for them."""
