"""What is put into a server: the schema, the extension of it, the native kernel."""

from pgrerank.install import extension, kernel, schema

__all__ = ["extension", "kernel", "schema"]
