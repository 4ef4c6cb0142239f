"""The fast lane: answers from memory before Twisted parses the request."""
