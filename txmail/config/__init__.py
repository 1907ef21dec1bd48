"""Settings, URLs and ini files into parts: see `txmail.config.settings`."""
