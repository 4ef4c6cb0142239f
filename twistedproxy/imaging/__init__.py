"""Pixels: decoding, resizing, color, encoding, and what that takes of an instance's metadata."""
