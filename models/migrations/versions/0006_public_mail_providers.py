"""Public mail providers' domains never auto-join."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

VIEW = """
    SELECT d.normalized AS domain, d.organization_id, 'member' AS default_role, MIN(d.created_at) AS since
    FROM domains AS d
    JOIN organizations AS o ON o.id = d.organization_id AND o.deleted_by IS NULL
    WHERE d.deleted_by IS NULL AND d.verification IN ('verified', 'legacy_verified')
      AND d.normalized IS NOT NULL {and_not_public} AND NOT EXISTS (
        SELECT 1 FROM domains AS e
        LEFT JOIN organizations AS p ON p.id = e.organization_id
        WHERE e.normalized = d.normalized AND e.organization_id <> d.organization_id AND p.deleted_by IS NULL
          AND e.deleted_by IS NULL AND e.verification IN ('verified', 'legacy_verified'))
    GROUP BY d.normalized, d.organization_id
"""
AND_NOT_PUBLIC = "AND NOT EXISTS (SELECT 1 FROM public_domains AS f WHERE f.domain = d.normalized)"


def _make_view(and_not_public: str) -> None:
    op.execute("DROP VIEW auto_join_domains")
    op.execute(f"CREATE VIEW auto_join_domains AS {VIEW.format(and_not_public=and_not_public)}")


def upgrade() -> None:
    op.create_table("public_domains", sa.Column("domain", sa.Text(), nullable=False, primary_key=True))
    _make_view(AND_NOT_PUBLIC)


def downgrade() -> None:
    _make_view("")
    op.drop_table("public_domains")
