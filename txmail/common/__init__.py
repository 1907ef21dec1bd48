"""What every part may use: text of protocols, locks, logs, forks, folders. It knows no mail."""
