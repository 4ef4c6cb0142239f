"""Tests of the files in deploy/. Those of `packages` and `image` take minutes: ``tox -e packages``, ``tox -e image``."""
