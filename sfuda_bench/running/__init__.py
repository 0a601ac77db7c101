"""Planning, computing and storing cells."""
