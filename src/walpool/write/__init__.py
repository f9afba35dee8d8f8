"""The write path: writer, appender, rotation and committer."""
