"""What completeness knows of the arrival of a series, which evidence decided, and what tells copies from new images."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; what came before has no arrival, and no decision of its has evidence."""
    op.add_column("study", sa.Column("forced_revision", sa.Integer(), server_default="0", nullable=False))
    op.add_column("association", sa.Column("last_series", sa.Text(), nullable=True))
    op.add_column("series", sa.Column("last_association", sa.Text(), nullable=True))
    op.add_column("series", sa.Column("n_runs", sa.Integer(), server_default="0", nullable=False))
    op.add_column("series", sa.Column("longest_pause_s", sa.Float(), server_default="0", nullable=False))
    op.create_index(op.f("ix_series_calling_ae_last_received"), "series", ["calling_ae", "last_received"], unique=False)
    op.add_column("instance", sa.Column("content_digest", sa.Text(), nullable=True))
    op.add_column("decision", sa.Column("evidence", sa.Text(), nullable=True))
    op.add_column("decision", sa.Column("complete_because", sa.Text(), nullable=True))
