"""The coordinator's programs: what is started, watched, restarted."""
