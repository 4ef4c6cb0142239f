"""Pixels: decoding, resizing, colour, encoding, and where that work is done."""
