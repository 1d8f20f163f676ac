"""What is put into a server: the schema, the extension of it, the native kernel."""
