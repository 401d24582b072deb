"""What a verdict looks for. Each check reads a run's files and yields findings; limits are named beside it."""
