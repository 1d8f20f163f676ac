"""Tenants see their own notes."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The role that the service lowers itself to, and the policy that applies to it."""
    op.execute(
        "DO $$ BEGIN IF to_regrole('notes_app') IS NULL THEN CREATE ROLE notes_app; END IF; END $$"
    )
    op.execute("GRANT notes_app TO CURRENT_USER")
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO notes_app")
    op.execute("GRANT USAGE ON SEQUENCE notes_id_seq TO notes_app")
    op.execute("ALTER TABLE notes ENABLE ROW LEVEL SECURITY")
    op.execute(
        "CREATE POLICY own_tenant ON notes TO notes_app"
        " USING (tenant_id = current_setting('app.tenant_id')::int)"
    )


def downgrade() -> None:
    """Every role sees all notes that it may read."""
    op.execute("DROP POLICY own_tenant ON notes")
    op.execute("ALTER TABLE notes DISABLE ROW LEVEL SECURITY")
    op.execute("DROP OWNED BY notes_app")
    op.execute("DROP ROLE notes_app")
