"""What a run is judged by, one class a question."""
