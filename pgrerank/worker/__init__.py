"""The worker: a wire server that SQL reaches by dblink, and the loop that encodes documents."""
