"""The history of the schema: one revision per change, applied by `Database.migrate`."""
