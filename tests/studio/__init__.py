"""Studio, over HTTP and in a browser."""
