"""Opening, mending and checking: what runs before the first append, or beside all of them."""
