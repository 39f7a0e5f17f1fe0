"""What people type and write in config files, checked against the options that there are before anything is built."""
