"""What stores leave out of answers that describe instances, put back while the answers pass."""
