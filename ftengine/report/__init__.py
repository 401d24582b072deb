"""What a run came to, for people: findings, the verdict in plain words, and one self-contained page."""
