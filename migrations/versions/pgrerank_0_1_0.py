"""pgrerank 0.1.0: the first release."""

from alembic import op

revision = "pgrerank_0_1_0"
down_revision = None
branch_labels = ("pgrerank",)
depends_on = None


def upgrade() -> None:
    """Install the schema."""
    op.install_pgrerank("0.1.0")


def downgrade() -> None:
    """Remove it, with rerankers and vectors."""
    op.uninstall_pgrerank()
