"""From a directory to an open log: believe the control block, or recover from what the segments say."""
