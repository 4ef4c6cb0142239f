"""A real browser with real viewers in front of the proxy. Run: ``python -m tests.browser``, which explains itself.

The viewers are npm's packages `openseadragon` and `dicom-microscopy-viewer`; they are installed into a temporary
folder and are no part of this project.
"""
