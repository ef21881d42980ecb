"""Moving an embedded installation over: all rows of a SQLite file into a PostgreSQL database.

`tables` says what is copied and how it is written, `source` reads the file, `target` writes and reads the
database, `mark` is what the database remembers of a copy, and `run` is the whole of it.
"""
