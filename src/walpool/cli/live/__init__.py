"""A log live: looks at it, as text, as a screen, and as a page."""
