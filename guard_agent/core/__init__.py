"""The core: seams, composition, pipeline and delivery. Plugins import from `guard_agent` only."""
