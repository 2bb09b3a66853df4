"""Is it ever stale, and what does freshness cost?"""
