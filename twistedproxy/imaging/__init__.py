"""Pixels: decoding, resizing, color, encoding, and where that work is done."""
