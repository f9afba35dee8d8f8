"""Cursors as every process sees them: what each has committed, who has it open, and how far it is behind."""
