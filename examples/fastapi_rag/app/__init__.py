"""Notes that can be searched, for many tenants."""
