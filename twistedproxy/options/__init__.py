"""The command line and the environment, made into `twistedproxy.settings.Settings`."""

from twistedproxy.options.command import Options, parse

__all__ = ["Options", "parse"]
