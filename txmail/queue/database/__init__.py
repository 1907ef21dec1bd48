"""What differs between databases: engines, transactions, errors, files, notifications."""
