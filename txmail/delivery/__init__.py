"""What a commit does with the mail of its transaction: direct delivery, or the queue."""
