"""Rights that workers and searches need, and that are missing."""

from __future__ import annotations

from pgrerank.doctor.finding import Connection, Found, Severity, ask


def roles(connection: Connection) -> Found:
    """What the schema's owner, whose role workers have, may do."""
    [row] = ask(
        connection,
        "SELECT n.nspowner::regrole::text AS owner, o.rolsuper,"
        " pg_has_role(current_user, n.nspowner, 'USAGE') AS is_owner,"
        " has_schema_privilege('public', n.oid, 'USAGE') AS is_open,"
        " has_foreign_data_wrapper_privilege(n.nspowner, f.oid, 'USAGE') AS may_register,"
        " pg_has_role(n.nspowner, 'pg_signal_backend', 'USAGE') AS may_cancel"
        " FROM pg_namespace n JOIN pg_roles o ON o.oid = n.nspowner,"
        " pg_foreign_data_wrapper f WHERE n.nspname = 'pgrerank' AND f.fdwname = 'dblink_fdw'",
    )
    about = f"role {row.owner}"
    if not row.is_owner:
        message = f"is not the schema's owner, {row.owner}: some of this may be hidden from it"
        yield Severity.NOTE, f"role {connection.info.user}", message, None
    if not row.is_open:
        message = "lets only some roles search: USAGE is not PUBLIC's any more"
        remedy = "GRANT USAGE ON SCHEMA pgrerank TO PUBLIC;  -- or to each role that searches"
        yield Severity.NOTE, "schema pgrerank", message, remedy
    if not row.may_register:
        message = "may not tell searches where its workers are (--register, set_worker)"
        grant = f"GRANT USAGE ON FOREIGN DATA WRAPPER dblink_fdw TO {row.owner};"
        yield Severity.WARNING, about, message, grant
    if not (row.rolsuper or row.may_cancel):
        message = "may not cancel a session of another role that hangs while it connects"
        yield Severity.NOTE, about, message, f"GRANT pg_signal_backend TO {row.owner};"


def sources(connection: Connection) -> Found:
    """What workers may read and lock of each source."""
    rows = ask(
        connection,
        "SELECT r.name, c.oid::regclass::text AS source, n.nspowner::regrole::text AS owner,"
        " has_schema_privilege(n.nspowner, c.relnamespace, 'USAGE') AS may_enter,"
        " c.relnamespace::regnamespace::text AS home,"
        " has_any_column_privilege(n.nspowner, c.oid, 'SELECT') AS may_read,"
        " c.relkind NOT IN ('r', 'p') OR has_any_column_privilege(n.nspowner, c.oid, 'UPDATE')"
        " AS may_lock,"
        " c.relrowsecurity AND NOT (o.rolsuper OR o.rolbypassrls"
        "  OR (c.relowner = n.nspowner AND NOT c.relforcerowsecurity)) AS is_hidden"
        " FROM pgrerank.rerankers r JOIN pg_class c ON c.oid = r.source,"
        " pg_namespace n JOIN pg_roles o ON o.oid = n.nspowner"
        " WHERE n.nspname = 'pgrerank' ORDER BY r.name",
    )
    for row in rows:
        about = f"reranker {row.name}"
        if not row.may_enter:
            message = f"workers' role {row.owner} may not use schema {row.home}"
            grant = f"GRANT USAGE ON SCHEMA {row.home} TO {row.owner};"
            yield Severity.ERROR, about, message, grant
        for right, has in (("SELECT", row.may_read), ("UPDATE", row.may_lock)):
            if not has:
                message = f"workers' role {row.owner} has no {right} on {row.source}"
                grant = f"GRANT {right} ON {row.source} TO {row.owner};"
                yield Severity.ERROR, about, message, grant
        if row.is_hidden:
            message = f"row-level security hides rows of {row.source} from workers' role"
            yield Severity.ERROR, about, message, f"ALTER ROLE {row.owner} BYPASSRLS;"
