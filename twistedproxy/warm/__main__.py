"""``python -m twistedproxy.warm``."""

from twistedproxy.warm.command import main

main()
