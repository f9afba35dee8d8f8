"""Pure bytes: how values become segment headers, frames and entries, and back. Nothing here calls the system."""
