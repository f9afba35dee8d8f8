"""Consuming a log: what was read is committed by name, so that whoever comes next goes on behind it."""
