"""The read path: scanning frames, the reader, and following a log as it grows. No lock that a writer waits for."""
