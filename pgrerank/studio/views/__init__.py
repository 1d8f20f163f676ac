"""The pages: each takes a request, reads what it wants under the caller's rights, and answers."""
