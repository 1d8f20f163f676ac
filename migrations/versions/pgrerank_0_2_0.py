"""pgrerank 0.2.0: sql/upgrades/0.1.0--0.2.0.sql."""

from alembic import op

revision = "pgrerank_0_2_0"
down_revision = "pgrerank_0_1_0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade the schema."""
    op.upgrade_pgrerank("0.1.0", "0.2.0")


def downgrade() -> None:
    """Say that there is no way back."""
    op.downgrade_pgrerank("0.2.0", "0.1.0")
