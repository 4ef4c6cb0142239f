"""``twistedproxy warm``: loads the frames of instances, series or studies into a proxy's cache before they are requested."""
