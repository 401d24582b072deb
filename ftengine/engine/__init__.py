"""What a user asks for, a verb a file."""
