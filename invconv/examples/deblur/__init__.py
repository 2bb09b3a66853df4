"""Pictures of a shaken camera, restored."""
