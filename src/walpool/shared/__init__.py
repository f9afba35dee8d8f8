"""What all processes of a log see together: its segments, the control block, who is alive, and the metrics."""
