"""The SQL of views of a former release: today's views must return the same rows."""

BLOCKS = """
SELECT m.organization_id, m.user_id, u.email_normalized,
       CASE WHEN m.deleted_by IS NOT NULL THEN 'removed' WHEN m.status = 'inactive' THEN 'deactivated'
            WHEN m.status = 'pending' THEN 'invited' ELSE 'of no known status' END AS reason, o.email_hash
FROM memberships AS m
LEFT JOIN users AS u ON u.id = m.user_id
LEFT JOIN user_addresses AS o ON o.user_id = m.user_id
WHERE (m.deleted_by IS NOT NULL OR m.status IS NULL OR m.status <> 'active')
  AND NOT EXISTS (SELECT 1 FROM unblocked_memberships AS l WHERE l.membership_id = m.id)
  AND NOT EXISTS (
    SELECT 1 FROM memberships AS n
    WHERE n.organization_id = m.organization_id AND n.user_id = m.user_id
      AND n.deleted_by IS NULL AND n.status = 'active')
  AND (u.deleted_by IS NULL OR NOT (m.deleted_by = 'event' AND m.status = 'active' AND u.deleted_by = 'event'
    AND (m.event_at > u.event_at OR (m.event_at = u.event_at AND m.event_id > u.event_id))))
UNION ALL
SELECT m.organization_id, c.user_id, v.email_normalized,
       CASE WHEN m.deleted_by IS NOT NULL THEN 'removed' WHEN m.status = 'inactive' THEN 'deactivated'
            WHEN m.status = 'pending' THEN 'invited' ELSE 'of no known status' END AS reason, c.email_hash
FROM memberships AS m
JOIN users AS u ON u.id = m.user_id
JOIN user_addresses AS o ON o.user_id = m.user_id
JOIN user_addresses AS b ON b.email_hash = o.email_hash
JOIN user_addresses AS c ON c.user_id = b.user_id
JOIN users AS v ON v.id = c.user_id
WHERE c.user_id <> m.user_id AND (m.deleted_by IS NOT NULL OR m.status IS NULL OR m.status <> 'active')
  AND NOT EXISTS (SELECT 1 FROM unblocked_memberships AS l WHERE l.membership_id = m.id)
  AND NOT EXISTS (
    SELECT 1 FROM memberships AS n
    WHERE n.organization_id = m.organization_id AND n.user_id = m.user_id
      AND n.deleted_by IS NULL AND n.status = 'active')
  AND (u.deleted_by IS NULL OR NOT (m.deleted_by = 'event' AND m.status = 'active' AND u.deleted_by = 'event'
    AND (m.event_at > u.event_at OR (m.event_at = u.event_at AND m.event_id > u.event_id))))
UNION ALL
SELECT j.organization_id, j.user_id, u.email_normalized, j.reason, o.email_hash
FROM joins AS j
LEFT JOIN users AS u ON u.id = j.user_id
LEFT JOIN user_addresses AS o ON o.user_id = j.user_id
WHERE j.state IN ('blocked', 'undone')
UNION ALL
SELECT j.organization_id, c.user_id, v.email_normalized, j.reason, c.email_hash
FROM joins AS j
JOIN user_addresses AS o ON o.user_id = j.user_id
JOIN user_addresses AS b ON b.email_hash = o.email_hash
JOIN user_addresses AS c ON c.user_id = b.user_id
JOIN users AS v ON v.id = c.user_id
WHERE c.user_id <> j.user_id AND j.state IN ('blocked', 'undone')
"""
"""`auto_join_blocks`, with today's name of the table of unblocked memberships."""

DOMAINS = """
SELECT d.normalized AS domain, d.organization_id, COALESCE(s.default_role, 'member') AS default_role,
       MIN(d.created_at) AS since
FROM domains AS d
JOIN mirror AS w ON w.auto_join <> 'off'
JOIN organizations AS o ON o.id = d.organization_id AND o.deleted_by IS NULL
LEFT JOIN workspace_settings AS s ON s.organization_id = d.organization_id
WHERE d.deleted_by IS NULL AND (d.verification = 'verified' OR d.verification = 'legacy_verified')
  AND COALESCE(s.auto_join, TRUE)
  AND d.normalized IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM public_domains AS f WHERE f.domain = d.normalized)
  AND NOT EXISTS (
    SELECT 1 FROM domains AS e
    LEFT JOIN organizations AS p ON p.id = e.organization_id
    WHERE e.normalized = d.normalized AND e.organization_id <> d.organization_id AND p.deleted_by IS NULL
      AND e.deleted_by IS NULL
      AND (e.verification = 'verified' OR e.verification = 'legacy_verified'))
GROUP BY d.normalized, d.organization_id, s.default_role
"""
"""`auto_join_domains`, where `legacy_verified` counts."""
