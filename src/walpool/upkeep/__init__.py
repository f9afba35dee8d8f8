"""What runs beside appends, and what people run: prepared segments, retention, checkpoint, copy, verify, repair."""
