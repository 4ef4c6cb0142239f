"""A store reached by DICOMweb over HTTP."""

from twistedproxy.origin.http.origin import HTTPOrigin

__all__ = ["HTTPOrigin"]
