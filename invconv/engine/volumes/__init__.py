"""Ways to a log-volume that are cheaper than a solver's own, or exact where its own is lost."""
