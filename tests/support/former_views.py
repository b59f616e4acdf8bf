"""SQL that views must agree with: of a former release, or written in another way."""

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

_REASON = """'invitation ' ||
       CASE i.status WHEN 'pending' THEN 'pending' WHEN 'revoked' THEN 'revoked' ELSE 'of no known status' END"""
_BLOCKS = """i.organization_id IS NOT NULL
  AND (i.status IS NULL OR i.status IN ('revoked', 'sent')
       OR (i.status = 'pending' AND (i.expires_at IS NULL OR i.expires_at >= '9998-01-01T00:00:00.000000+00:00')))
  AND i.id NOT IN (SELECT u.invitation_id FROM unblocked_invitations AS u
                   WHERE u.invitation_id = i.id AND (u.status = i.status OR (i.status IS NULL AND u.status = '')))"""
INVITED = f"""
SELECT i.organization_id, o.user_id, i.email_normalized, {_REASON},
       a.email_hash
FROM invitations AS i
JOIN invited_addresses AS a ON a.invitation_id = i.id
LEFT JOIN user_addresses AS o ON o.email_hash = a.email_hash
WHERE {_BLOCKS}
UNION ALL
SELECT i.organization_id, p.id, p.email_normalized, {_REASON},
       c.email_hash
FROM users AS p
JOIN user_addresses AS o ON o.user_id = p.id
JOIN user_addresses AS c ON c.user_id = p.id AND c.email_hash <> o.email_hash
JOIN invited_addresses AS a ON a.email_hash = o.email_hash
JOIN invitations AS i ON i.id = a.invitation_id
WHERE {_BLOCKS}
UNION ALL
SELECT i.organization_id, c.user_id, v.email_normalized, {_REASON},
       c.email_hash
FROM users AS p
JOIN user_addresses AS o ON o.user_id = p.id
JOIN invited_addresses AS a ON a.email_hash = o.email_hash
JOIN user_addresses AS s ON s.user_id = p.id
JOIN user_addresses AS b ON b.email_hash = s.email_hash AND b.user_id <> p.id
JOIN user_addresses AS c ON c.user_id = b.user_id
JOIN users AS v ON v.id = c.user_id
JOIN invitations AS i ON i.id = a.invitation_id
WHERE {_BLOCKS}
"""  # noqa: S608 - our own text
"""The blocks of invitations, written in another way. Random rows have one time that is after now."""

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
