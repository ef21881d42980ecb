"""The steps that bring each kind of database up to date, oldest first. A step that was released never changes."""
