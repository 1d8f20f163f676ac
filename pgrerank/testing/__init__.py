"""Fixtures for tests that search: a server, and a fresh database with pgrerank for each test.

A pytest plugin, there wherever pgrerank is installed; `pgrerank.testing.plugin` has the fixtures.
"""
