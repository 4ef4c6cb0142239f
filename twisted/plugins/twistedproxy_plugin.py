"""Shows ``twistd`` the command ``twistedproxy``; imports nothing of it, for every twistd command reads this file."""

from twisted.application.service import ServiceMaker

twistedproxy = ServiceMaker(
    "twistedproxy",
    "twistedproxy.service",
    "A DICOMweb caching proxy that loads frames before they are asked for.",
    "twistedproxy",
)
