"""What a process holds until it is appended: entries of SyncMode.NONE."""
