"""The Postgres wire protocol, spoken as a server. Knows no models."""
