"""What a cluster allows: resources per stage, caps, and the retry policy."""
