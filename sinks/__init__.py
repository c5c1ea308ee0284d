"""The warehouse: tables, migrations, views, the ledgered writer, reconciliation."""
