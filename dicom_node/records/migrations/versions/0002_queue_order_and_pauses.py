"""Put the queue's order into an index, count workers that a job killed, name who acted, and keep what is paused.

Columns are added in place with a default, which SQLite does without a copy of the table; the program always writes
them itself. A job of an earlier version is due when its last image came: it has waited longest.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_LONG_AGO = "1970-01-01 00:00:00.000000"


def upgrade() -> None:
    """Apply the change."""
    op.add_column("job", sa.Column("rank", sa.Integer(), nullable=False, server_default="2"))
    op.add_column("job", sa.Column("target_s", sa.Float(), nullable=True))
    op.add_column("job", sa.Column("due_at", sa.DateTime(timezone=True), nullable=False, server_default=_LONG_AGO))
    op.add_column("job", sa.Column("lane", sa.Text(), nullable=False, server_default=""))
    op.add_column("job", sa.Column("worker_deaths", sa.Integer(), nullable=False, server_default="0"))
    op.execute("UPDATE job SET rank = CASE priority WHEN 'stat' THEN 0 WHEN 'high' THEN 1 ELSE 2 END")
    op.execute("UPDATE job SET due_at = received_at, lane = 'onnxruntime/' || plugin || '/' || route")
    op.drop_index(op.f("ix_job_state_id"), table_name="job")
    op.create_index(
        op.f("ix_job_state_lane_rank_due_at_id"), "job", ["state", "lane", "rank", "due_at", "id"], unique=False
    )
    op.add_column("job_event", sa.Column("actor", sa.Text(), nullable=False, server_default=""))
    op.execute("UPDATE job_event SET reason = '' WHERE reason IS NULL")
    with op.batch_alter_table("job_event") as events:  # nothing refers to it: a copy is safe
        events.alter_column("reason", existing_type=sa.Text(), nullable=False)
    op.create_table(
        "pause",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("pk_pause")),
    )
