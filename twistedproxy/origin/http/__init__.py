"""A store reached by DICOMweb over HTTP."""
