"""Models behind HTTP endpoints: what is sent, how it is sent, and what of an answer is believed."""
