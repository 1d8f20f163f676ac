-- Removes everything that pgrerank made, triggers on source tables included; source tables stay.

DROP SERVER IF EXISTS pgrerank_worker CASCADE;
DROP SCHEMA IF EXISTS pgrerank CASCADE;
