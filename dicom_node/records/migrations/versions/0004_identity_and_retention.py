"""Add what identity and retention need: holds, withdrawals, and the marks of what was purged."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_NEW: dict[str, tuple[sa.Column[Any], ...]] = {
    "study": (
        sa.Column("identities", sa.JSON(), nullable=True),
        sa.Column("purged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("unlinked_at", sa.DateTime(timezone=True), nullable=True),
    ),
    "instance": (
        sa.Column("patient_id", sa.Text(), server_default="", nullable=False),
        sa.Column("issuer_of_patient_id", sa.Text(), server_default="", nullable=False),
        sa.Column("withdrawn", sa.Text(), nullable=True),
        sa.Column("purged_at", sa.DateTime(timezone=True), nullable=True),
    ),
    "job": (sa.Column("flag", sa.Text(), nullable=True),),
    "result": (
        sa.Column("destination", sa.Text(), server_default="", nullable=False),
        sa.Column("variant_of", sa.Integer(), nullable=True),
        sa.Column("purged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("unlinked_at", sa.DateTime(timezone=True), nullable=True),
    ),
}


def upgrade() -> None:
    """Apply the change."""
    for table, columns in _NEW.items():
        for column in columns:  # one by one, so that SQLite alters the table in place: others refer to it
            op.add_column(table, column)
    op.create_index(op.f("ix_study_state_last_received"), "study", ["state", "last_received"], unique=False)
    op.execute(
        """
        UPDATE instance SET patient_id = coalesce(
            (SELECT study.patient_id FROM study WHERE study.study_instance_uid = instance.study_instance_uid), '')"""
    )
    op.create_table(
        "withdrawal",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("note_sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint(
            "study_instance_uid", "sop_instance_uid", "note_sop_instance_uid", name=op.f("pk_withdrawal")
        ),
    )
