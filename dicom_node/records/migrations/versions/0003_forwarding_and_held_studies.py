"""Deliver received instances (a route without plugin), and say why a study is held."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    with op.batch_alter_table("delivery", table_kwargs={"sqlite_autoincrement": True}) as delivery:
        delivery.alter_column("result_id", existing_type=sa.Integer(), nullable=True)
        delivery.add_column(sa.Column("instance_sop_uid", sa.Text(), nullable=True))
        delivery.add_column(sa.Column("instance_digest", sa.Text(), nullable=True))
        delivery.create_unique_constraint(
            op.f("uq_delivery_job_id_instance_sop_uid_instance_digest_destination"),
            ["job_id", "instance_sop_uid", "instance_digest", "destination"],
        )
    op.add_column("study", sa.Column("reason", sa.Text(), nullable=True))
    op.add_column("study", sa.Column("rate_guard", sa.Text(), nullable=True))
    op.create_index(op.f("ix_study_first_received"), "study", ["first_received"], unique=False)
