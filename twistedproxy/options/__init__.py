"""The command line and the environment, made into `twistedproxy.settings.Settings` (`twistedproxy.options.command`)."""
