"""What a run came to, for people: the verdict in plain words, and one self-contained page."""
